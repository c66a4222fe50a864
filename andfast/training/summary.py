"""What a stage ends with: numbers on held-out crops, a sheet to look at, and summary.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from andfast.config.schema import TrainConfig
from andfast.drawing import loss_curve, sample_sheet
from andfast.files import atomic_file
from andfast.training.step import TrainingStep
from andfast.training.validation import Images, ValidationSet, bicubic, restore, score, values
from andfast.training.worst_case import degrade_against, held_out_crops


@dataclass
class Summary:
    """summary.json.

    Attributes:
        psnr_y: dB on held-out crops, mean: bicubic_clean, sr_clean, bicubic_degraded, sr_degraded; and on pairs of
            one's own, if any, bicubic_pairs and sr_pairs. Those of the last stage that was run.
        seconds: wall-clock time of the training steps, all stages.
        steps: optimizer steps done, all stages.
        ops: the implementation used for each op.
        data_wait: fraction of ``seconds`` in which steps waited for data.
        stages: by name, psnr_y, seconds, steps and seconds_waited of every stage.
        notes: what a reader has to know, e.g. random VGG weights.
    """

    psnr_y: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    steps: int = 0
    ops: dict[str, str] = field(default_factory=dict)
    data_wait: float = 0.0
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add_stage(self, stage: str, steps: int, seconds: float, waited: float) -> None:
        """Take in a finished stage."""
        self.stages[stage] = {"psnr_y": {}, "seconds": seconds, "steps": steps, "seconds_waited": waited}
        self.steps = sum(one["steps"] for one in self.stages.values())
        self.seconds = sum(one["seconds"] for one in self.stages.values())
        self.data_wait = sum(one["seconds_waited"] for one in self.stages.values()) / max(self.seconds, 1e-9)

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        with atomic_file(path) as file:
            file.write((json.dumps(vars(self), indent=2) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> "Summary":
        """Read an earlier summary of the run, or start a new one."""
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else cls()


def held_out_quality(
    config: TrainConfig,
    step: TrainingStep,
    generator: nn.Module,
    validation: ValidationSet,
    sheet: Path | None,
) -> dict[str, float]:
    """PSNR-Y in dB of bicubic and of ``generator``, on clean and on adversarially degraded held-out crops.

    Args:
        sheet: where to write a sheet of the first crops; None for none.
    """
    settings = config.validation
    border = config.scale if settings.crop_border is None else settings.crop_border
    hr = held_out_crops(validation, settings.crops, settings.crop_size, config.scale)
    degraded, clean = degrade_against(step, generator, hr)
    found = {}
    outputs: dict[str, list[Tensor]] = {}
    for name, lr in (("clean", clean), ("degraded", degraded)):
        with step.mixed(next(generator.parameters())):
            outputs[name] = restore(generator, list(lr))
        found[f"bicubic_{name}"] = score(list(bicubic(lr, config.scale)), list(hr), crop_border=border)["psnr_y"]
        found[f"sr_{name}"] = score(outputs[name], list(hr), crop_border=border)["psnr_y"]
    if validation.lr is not None:
        pairs = [bicubic(one[None], config.scale)[0] for one in validation.lr]
        found["bicubic_pairs"] = score(pairs, validation.hr, crop_border=border)["psnr_y"]
        with step.mixed(next(generator.parameters())):
            restored = restore(generator, validation.lr)
        found["sr_pairs"] = score(restored, validation.hr, crop_border=border)["psnr_y"]
    if sheet is not None and settings.sheet:
        write_sheet(
            sheet,
            validation.names[: min(settings.sheet, len(hr))],
            {"HR": hr, "clean LR": clean, "LR": degraded, "SR": outputs["degraded"]},
            scale=config.scale,
            crop_border=border,
            heading="Held-out crops; bicubic and SR restore the adversarial LR. PSNR-Y against HR.",
        )
    return found


def write_sheet(
    path: Path,
    names: Sequence[str],
    images: Mapping[str, Images],
    *,
    scale: int,
    crop_border: int,
    heading: str,
) -> None:
    """Write a sheet with a row a name: HR, the clean LR if given, LR, bicubic of LR, SR.

    Args:
        names: of the pictures in the rows.
        images: "HR", "LR", "SR" and maybe "clean LR", each with at least as many images as names.
    """
    titles = ["HR", "LR", "bicubic", "SR"]
    if "clean LR" in images:
        titles = ["HR", "clean LR", "adversarial LR", "bicubic", "SR"]
    rows, captions = [], []
    for index, name in enumerate(names):
        hr, lr, sr = (images[key][index] for key in ("HR", "LR", "SR"))
        upscaled = bicubic(lr[None], scale)[0]
        low = [images["clean LR"][index], lr] if "clean LR" in images else [lr]
        rows.append([hr, *low, upscaled, sr])
        quality = [values(one, hr, crop_border=crop_border)["psnr_y"] for one in (upscaled, sr)]
        captions.append([name, *([""] * len(low)), *(f"{one:.2f} dB" for one in quality)])
    path.parent.mkdir(parents=True, exist_ok=True)
    sample_sheet(rows, path, titles=titles, captions=captions, heading=heading)


def table(summary: Summary, output: Path) -> str:
    """The summary as a short text for the terminal."""
    lines = [f"{'PSNR-Y, dB, held-out crops':<30}{'bicubic':>10}{'SR':>10}"]
    for stage, found in summary.stages.items():
        quality = found["psnr_y"]
        for name, label in (("clean", "clean LR"), ("degraded", "adversarial LR"), ("pairs", "own pairs")):
            if f"sr_{name}" in quality:
                values_text = f"{quality[f'bicubic_{name}']:>10.2f}{quality[f'sr_{name}']:>10.2f}"
                lines.append(f"{f'stage {stage}, {label}':<30}{values_text}")
    steps = ", ".join(f"{found['steps']} of stage {stage}" for stage, found in summary.stages.items())
    lines.append(
        f"steps: {steps}, in {summary.seconds:.0f} s of training, {summary.data_wait:.1%} of it waiting for data"
    )
    lines.append("ops: " + ", ".join(f"{op} {impl}" for op, impl in summary.ops.items()))
    lines += [f"note: {note}" for note in summary.notes]
    for name in ("weights", "sheet.png", "loss_curve.png", "metrics.jsonl", "tensorboard", "summary.json"):
        if (output / name).exists():
            lines.append(f"  {output / name}")
    return "\n".join(lines)


def draw_curve(output: Path) -> None:
    """Draw loss_curve.png from the run's metrics."""
    loss_curve(output / "metrics.jsonl", output / "loss_curve.png")
