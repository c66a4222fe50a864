"""metrics.jsonl and TensorBoard events."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from andfast.training.metrics_log import MetricsLog, Value, read_metrics


def fill(output: Path, first: int, last: int, *, stage: str = "net", **options: Any) -> None:
    with MetricsLog(output, tensorboard=False, **options) as log:
        for step in range(first, last + 1):
            log.write(stage, step, {"loss": step / 3}, {"seconds": 1.0})


def test_line_has_all_values_at_full_precision(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        values: dict[str, Value] = {
            "loss": 0.1 + 0.2,
            "single": torch.tensor(0.1),
            "count": 3,
            "impl": "cpp",
            "on": True,
            "no": None,
        }
        log.write("net", 7, values, {"seconds": 0.5})
        assert (tmp_path / "metrics.jsonl").read_text().endswith("}\n")
        log.write("gan", 1, {})
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert first == {
        "stage": "net", "step": 7, "loss": 0.1 + 0.2, "single": torch.tensor(0.1).item(),
        "count": 3, "impl": "cpp", "on": True, "no": None, "timing": {"seconds": 0.5},
    }  # fmt: skip
    assert second == {"stage": "gan", "step": 1}


@settings(max_examples=50, deadline=None)
@given(value=st.floats())
def test_floats_round_trip(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    output = tmp_path_factory.mktemp("log")
    with MetricsLog(output, tensorboard=False) as log:
        log.write("net", 1, {"value": value})
    text = (output / "metrics.jsonl").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    number = float(read_metrics(output / "metrics.jsonl")[0]["value"])
    assert number.hex() == value.hex() or (math.isnan(number) and math.isnan(value))


def test_write_rejects_reserved_names_and_tensors_with_several_elements(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        with pytest.raises(ValueError, match="values must not be named stage, step, timing, was 'step'"):
            log.write("net", 1, {"step": 3})
        with pytest.raises(ValueError, match=r"loss must have one element, was a tensor of shape \(2,\)"):
            log.write("net", 1, {"loss": torch.zeros(2)})
        with pytest.raises(ValueError, match=r"stage must be one of \('net', 'gan'\), was 'x'"):
            log.write("x", 1, {})
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_resume_cuts_off_lines_after_the_checkpoint(tmp_path: Path) -> None:
    fill(tmp_path, 1, 10)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    fill(tmp_path, 1, 3, stage="gan", resume_from=("net", 10))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"stage": "gan", "step": 4, "lo')
    MetricsLog(tmp_path, tensorboard=False, resume_from=("gan", 2)).close()
    steps = [(line["stage"], line["step"]) for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == [*[("net", step) for step in range(1, 11)], ("gan", 1), ("gan", 2)]
    fill(tmp_path, 6, 10, resume_from=("net", 5))
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    MetricsLog(tmp_path, tensorboard=False, resume_from=("net", 0)).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_new_run_rejects_existing_metrics(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2)
    with pytest.raises(FileExistsError, match=r"metrics\.jsonl holds the metrics of an earlier run"):
        MetricsLog(tmp_path, tensorboard=False)


@pytest.mark.parametrize("bad", ["nonsense", "[1]", '{"step": 3}', '{"stage": "x", "step": 3}'])
def test_resume_names_an_invalid_line(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "net", "step": 1}\n' + bad + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: must be a JSON object with a stage and a step"):
        MetricsLog(tmp_path, tensorboard=False, resume_from=("net", 5))
    assert bad in path.read_text()


def test_disabled_log_writes_nothing(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run", tensorboard=True, enabled=False)
    log.write("net", 1, {"loss": 1.0})
    log.sync()
    log.close()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_tensorboard_drops_repeated_steps(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with MetricsLog(tmp_path, tensorboard=True) as log:
        for step in range(1, 6):
            log.write("net", step, {"loss": 1.0 * step, "impl": "cpp"}, {"seconds": 2.0})
        log.write("gan", 1, {"loss": 7.0})
        opened = time.time()
        log.sync()
    # TensorBoard reads event files by name: the second they were opened in, then a number that is not padded.
    while int(time.time()) <= int(opened):
        time.sleep(0.05)
    with MetricsLog(tmp_path, tensorboard=True, resume_from=("net", 3)) as log:
        log.write("net", 4, {"loss": 40.0})
        log.write("gan", 1, {"loss": 70.0})

    def read(stage: str) -> Any:
        events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / stage))
        events.Reload()
        return events

    net, gan = read("net"), read("gan")
    assert [(event.step, event.value) for event in net.Scalars("loss")] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    assert [(event.step, event.value) for event in gan.Scalars("loss")] == [(1, 70)]
    assert set(net.Tags()["scalars"]) == {"loss", "timing/seconds"}


def test_missing_tensorboard_raises_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = MetricsLog(tmp_path, tensorboard=True)
    with pytest.raises(ModuleNotFoundError, match="install it or set tensorboard to false"):
        log.write("net", 1, {"loss": 1.0})
    log.close()


def test_lines_are_on_disk_before_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from andfast.training.metrics_log import MetricsLog\n"
        "log = MetricsLog(Path(sys.argv[1]), tensorboard=False)\n"
        "log.write('net', 1, {'loss': 1.0}); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"stage": "net", "step": 1, "loss": 1.0}]


def test_resume_keeps_the_lines_of_the_checkpoint(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        for step in (1, 2):
            log.write("net", step, {"loss": 1.0})
        count = log.lines
        log.write("net", 2, {"validation_psnr_rgb": 30.0})  # after the checkpoint, which holds that it is due
    with MetricsLog(tmp_path, tensorboard=False, resume_from=("net", 2), lines=count) as log:
        assert log.lines == count == 2
    assert [sorted(line) for line in read_metrics(log.path)] == [["loss", "stage", "step"]] * 2
    log.path.write_bytes(log.path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"metrics.jsonl is damaged: it must have 2 lines .*, has 1"):
        MetricsLog(tmp_path, tensorboard=False, resume_from=("net", 2), lines=count)
