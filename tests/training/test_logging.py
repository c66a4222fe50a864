"""metrics.jsonl, TensorBoard events, the progress bar, and the run's configuration and versions."""

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from andfast.config.files import load
from andfast.config.schema import DataConfig, TrainConfig
from andfast.training import logging
from andfast.training.logging import (
    MetricsLog,
    Progress,
    commit_of,
    describe,
    read_metrics,
    say,
    versions,
    write_run_info,
)


def fill(output: Path, first: int, last: int, *, stage: str = "net", **options: Any) -> None:
    with MetricsLog(output, tensorboard=False, **options) as log:
        for step in range(first, last + 1):
            log.write(stage, step, {"loss": step / 3}, {"seconds": 1.0})


def test_a_line_holds_everything_at_full_precision(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        values: dict[str, logging.Value] = {
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
def test_every_number_comes_back(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    output = tmp_path_factory.mktemp("log")
    with MetricsLog(output, tensorboard=False) as log:
        log.write("net", 1, {"value": value})
    text = (output / "metrics.jsonl").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    found = float(read_metrics(output / "metrics.jsonl")[0]["value"])
    assert found.hex() == value.hex() or (math.isnan(found) and math.isnan(value))


def test_what_cannot_be_logged(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        with pytest.raises(ValueError, match="values must not be named stage, step, timing, was 'step'"):
            log.write("net", 1, {"step": 3})
        with pytest.raises(ValueError, match=r"loss must be one number, was a tensor of shape \(2,\)"):
            log.write("net", 1, {"loss": torch.zeros(2)})
        with pytest.raises(ValueError, match=r"stage must be one of \('net', 'gan'\), was 'x'"):
            log.write("x", 1, {})
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_resuming_cuts_off_what_is_done_again(tmp_path: Path) -> None:
    fill(tmp_path, 1, 10)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    fill(tmp_path, 1, 3, stage="gan", resume_from=("net", 10))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"stage": "gan", "step": 4, "lo')
    MetricsLog(tmp_path, tensorboard=False, resume_from=("gan", 2)).close()
    found = [(line["stage"], line["step"]) for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert found == [*[("net", step) for step in range(1, 11)], ("gan", 1), ("gan", 2)]
    fill(tmp_path, 6, 10, resume_from=("net", 5))
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    MetricsLog(tmp_path, tensorboard=False, resume_from=("net", 0)).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_new_run_does_not_append_to_an_old_one(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2)
    with pytest.raises(FileExistsError, match=r"metrics\.jsonl holds the metrics of an earlier run"):
        MetricsLog(tmp_path, tensorboard=False)


@pytest.mark.parametrize("bad", ["nonsense", "[1]", '{"step": 3}', '{"stage": "x", "step": 3}'])
def test_a_foreign_line_is_an_error_that_names_it(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "net", "step": 1}\n' + bad + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: must be a JSON object with a stage and a step"):
        MetricsLog(tmp_path, tensorboard=False, resume_from=("net", 5))
    assert bad in path.read_text()


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run", tensorboard=True, enabled=False)
    log.write("net", 1, {"loss": 1.0})
    log.picture("net", 1, "sheet", torch.zeros(3, 4, 4))
    log.sync()
    log.close()
    write_run_info(tmp_path / "run", TrainConfig(output=tmp_path), enabled=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_tensorboard_shows_the_steps_that_count(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with MetricsLog(tmp_path, tensorboard=True) as log:
        for step in range(1, 6):
            log.write("net", step, {"loss": 1.0 * step, "impl": "cpp"}, {"seconds": 2.0})
        log.picture("net", 5, "sheet", torch.zeros(3, 8, 8, dtype=torch.uint8))
        log.write("gan", 1, {"loss": 7.0})
        log.sync()
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


def test_without_tensorboard_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = MetricsLog(tmp_path, tensorboard=True)
    with pytest.raises(ModuleNotFoundError, match="install it or set tensorboard to false"):
        log.write("net", 1, {"loss": 1.0})
    log.close()


def test_lines_survive_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from andfast.training.logging import MetricsLog\n"
        "log = MetricsLog(Path(sys.argv[1]), tensorboard=False)\n"
        "log.write('net', 1, {'loss': 1.0}); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"stage": "net", "step": 1, "loss": 1.0}]


def test_run_info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(output=tmp_path, data=DataConfig(train=["a"]))
    write_run_info(tmp_path, config)
    assert load(tmp_path / "config.yaml") == config
    first = json.loads((tmp_path / "versions.json").read_text())
    assert first["torch"] == torch.__version__.partition("+")[0] or first["torch"] == torch.__version__
    assert {"andfast", "triton", "numpy", "python", "platform", "device", "cuda", "commit", "changed"} <= set(first)
    assert first["device"]
    write_run_info(tmp_path, config)
    assert json.loads((tmp_path / "versions.json").read_text()) == first
    monkeypatch.setattr(logging, "versions", lambda _device: {"torch": "99"})
    write_run_info(tmp_path, config)
    assert json.loads((tmp_path / "versions.json").read_text()) == {"torch": "99", "earlier": [first]}


def git(folder: Path, *arguments: str) -> str:
    identity = {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {**os.environ, **identity, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


def test_commit_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    package, installed = tmp_path / "package", tmp_path / "venv"
    package.mkdir()
    installed.mkdir()
    (package / "a.py").write_text("1")
    (installed / "a.py").write_text("1")
    assert commit_of(package) == (None, None)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "package")
    assert commit_of(package) == (None, None)
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert commit_of(package) == (commit, False)
    assert commit_of(installed) == (None, None)
    (package / "a.py").write_text("2")
    assert commit_of(package) == (commit, True)
    monkeypatch.setenv("PATH", "")
    assert commit_of(package) == (None, None)


def test_versions_name_absent_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "_PACKAGES", ("torch", "no-such-package-here"))
    found = versions()
    assert found["no-such-package-here"] is None
    assert found["torch"]


def test_the_progress_bar_shows_what_was_asked_for() -> None:
    drawn = io.StringIO()
    with Progress("net", 10, done=4, file=drawn) as bar:
        bar.show(loss=0.05123, images_per_second=38.14, ascent_share=0.781, lr_psnr=24.07, loss_gain=0.0123)
        bar.advance(6)
    text = drawn.getvalue()
    assert "net" in text
    assert "10/10" in text
    assert "loss 0.0512, 38.1 img/s, ascent 78%, LR 24.1 dB, gain +0.0123" in text
    silent = io.StringIO()
    with Progress("net", 10, enabled=False, file=silent) as bar:
        bar.show(loss=1.0)
        bar.advance()
    assert silent.getvalue() == ""
    assert describe(None, 1.0, None, None, -0.5) == "1.0 img/s, gain -0.5000"


def test_say(capsys: pytest.CaptureFixture[str]) -> None:
    say("weights: here")
    say("not here", enabled=False)
    assert capsys.readouterr().out == "weights: here\n"
