"""Results of a run: summary.json, and the table printed at its end."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from andfast.files import atomic_file
from andfast.training.run_folder import read_json


@dataclass
class Summary:
    """Contents of summary.json.

    Attributes:
        psnr_y: mean PSNR-Y (dB) of the last stage on held-out crops: bicubic_clean, sr_clean, bicubic_degraded,
            sr_degraded; and on pairs, if configured, bicubic_pairs and sr_pairs.
        psnr_rgb: the same in RGB.
        color_shift: the same of the mean offsets of R, G and B from HR, in levels of 255.
        seconds: wall-clock time of the training steps, over all stages.
        steps: optimizer steps, over all stages.
        ops: the implementation used for each op.
        data_wait: fraction of ``seconds`` spent waiting for data.
        stages: psnr_y, psnr_rgb, color_shift, seconds, steps and seconds_waited per stage.
        notes: remarks for the reader, such as random VGG weights.
    """

    psnr_y: dict[str, float] = field(default_factory=dict)
    psnr_rgb: dict[str, float] = field(default_factory=dict)
    color_shift: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    steps: int = 0
    ops: dict[str, str] = field(default_factory=dict)
    data_wait: float = 0.0
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add_stage(self, stage: str, steps: int, seconds: float, waited: float) -> None:
        """Add a finished stage."""
        self.stages[stage] = {"psnr_y": {}, "seconds": seconds, "steps": steps, "seconds_waited": waited}
        self.steps = sum(record["steps"] for record in self.stages.values())
        self.seconds = sum(record["seconds"] for record in self.stages.values())
        self.data_wait = sum(record["seconds_waited"] for record in self.stages.values()) / max(self.seconds, 1e-9)

    def add_quality(self, stage: str, quality: Mapping[str, dict[str, Any]]) -> None:
        """Add psnr_y, psnr_rgb and color_shift of a finished stage."""
        self.stages[stage].update(quality)
        self.psnr_y, self.psnr_rgb = quality["psnr_y"], quality["psnr_rgb"]
        self.color_shift = quality["color_shift"]

    def add_note(self, note: str) -> None:
        """Add a remark once."""
        if note not in self.notes:
            self.notes.append(note)

    def write(self, path: Path) -> None:
        """Write the file atomically."""
        with atomic_file(path) as file:
            file.write((json.dumps(vars(self), indent=2) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> "Summary":
        """Read the summary of a resumed run; an empty one if there is no file.

        Raises:
            ValueError: the file is damaged; the message names it.
        """
        if not path.is_file():
            return cls()
        contents = read_json(path)
        unknown = contents.keys() - {field.name for field in fields(cls)}
        if unknown or not all(isinstance(record, dict) for record in contents.get("stages", {}).values()):
            raise ValueError(f"{path} is damaged: it is not the summary of a run; delete it to go on without it")
        return cls(**contents)

    @classmethod
    def of(cls, state: Mapping[str, Any], path: Path) -> "Summary":
        """The summary in a checkpoint's state; older checkpoints do not store it, so it is read from the file."""
        return cls(**state["summary"]) if "summary" in state else cls.read(path)

    def table(self, output: Path) -> str:
        """The summary as text for the terminal, with the paths of the results in ``output``."""
        lines = [
            f"{'PSNR-Y, dB, held-out crops':<30}{'bicubic':>10}{'SR':>10}{'bicubic, RGB':>14}{'SR, RGB':>10}"
            f"{'color shift':>15}"
        ]
        for stage, record in self.stages.items():
            psnr = record["psnr_y"]
            for name, label in (("clean", "clean LR"), ("degraded", "adversarial LR"), ("pairs", "own pairs")):
                if f"sr_{name}" in psnr:
                    columns = f"{psnr[f'bicubic_{name}']:>10.2f}{psnr[f'sr_{name}']:>10.2f}"
                    if rgb := record.get("psnr_rgb"):  # summaries of earlier versions have none
                        shift = max(record["color_shift"][f"sr_{name}"], key=abs)
                        columns += f"{rgb[f'bicubic_{name}']:>14.2f}{rgb[f'sr_{name}']:>10.2f}{shift:>+15.2f}"
                    lines.append(f"{f'stage {stage}, {label}':<30}{columns}")
        steps = ", ".join(f"{record['steps']} of stage {stage}" for stage, record in self.stages.items())
        lines.append(
            f"steps: {steps}, in {self.seconds:.0f} s of training, {self.data_wait:.1%} of it waiting for data"
        )
        lines.append("ops: " + ", ".join(f"{op} {impl}" for op, impl in self.ops.items()))
        lines += [f"note: {note}" for note in self.notes]
        for name in ("weights", "sheet.png", "loss_curve.png", "metrics.jsonl", "tensorboard", "summary.json"):
            if (output / name).exists():
                lines.append(f"  {output / name}")
        return "\n".join(lines)
