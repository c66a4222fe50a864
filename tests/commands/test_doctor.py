"""The doctor command: findings, problems, and memory estimates compared with a real step."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from andfast import doctor
from andfast.config.files import dump
from andfast.config.schema import (
    AdversaryConfig,
    DataConfig,
    DegradationConfig,
    DiscriminatorConfig,
    GeneratorConfig,
    LossConfig,
    TrainConfig,
    ValidationConfig,
)
from andfast.diagnosis import machine, prospects
from andfast.diagnosis.memory import StepMemory, free_bytes, photographs, step_memory
from andfast.functional import dispatch, extension
from andfast.functional.selftest import SelfTestResult
from andfast.nn import RRDBNet
from andfast.nn.weights import save_weights
from andfast.training.build import build_generator, build_step
from andfast.training.distributed import ProcessGroup


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("large.png", 80), ("small.png", 20)):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size + 10, 3), np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def config(tmp_path: Path, photos: Path) -> TrainConfig:
    return TrainConfig(
        output=tmp_path / "run",
        device="cpu",
        batch_size=2,
        precision="fp32",
        generator=GeneratorConfig(features=8, blocks=1, growth=4),
        degradation=DegradationConfig(channels=8),
        adversary=AdversaryConfig(steps=3),
        discriminator=DiscriminatorConfig(kind="unet", features=8),
        loss=LossConfig(vgg_weights="random", perceptual_layers={"conv2_2": 1.0}),
        data=DataConfig(train=[str(photos)], patch_size=32),
        validation=ValidationConfig(hr=[str(photos)], crop_size=64),
    )


@pytest.fixture
def fixed_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the estimate of the memory, which runs a step."""
    monkeypatch.setattr(prospects, "step_memory", lambda _, stage: StepMemory(stage, 1, 1, 1, {"ascent": 1}))


def run(config: TrainConfig, tmp_path: Path, *more: str) -> tuple[int, dict]:
    file = tmp_path / "config.yaml"
    file.write_text(dump(config))
    code = doctor.main(["--config", str(file), "--json", str(tmp_path / "found.json"), "--no-self-test", *more])
    return code, json.loads((tmp_path / "found.json").read_text())


# ------------------------------------------------------------------------------------------------------------- output


def test_without_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert doctor.main(["--json", str(tmp_path / "found.json")]) == 0
    text = capsys.readouterr().out
    for section in ("Versions", "Devices", "Extension", "Ops on cpu", "Self-test", "Weights"):
        assert f"\n{section}" in f"\n{text}"
    assert "Training (without --config) would run." in text
    assert "\033[" not in text
    assert len(text.splitlines()) < 40
    record = json.loads((tmp_path / "found.json").read_text())
    assert record["ready"] is True
    assert {op: entry["used"] for op, entry in record["ops"]["cpu"].items()} == dispatch.chosen("cpu")
    assert record["ops"]["cpu"]["degradation_block"]["unavailable"]["triton"].startswith("it runs on CUDA devices")
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert all(result["passed"] for result in record["self_test"])
    assert record["weights"]["VGG19 (stage gan)"]["path"].endswith("vgg19-dcbb9e9d.pth")


@pytest.mark.parametrize(("archs", "text"), [("", "built for the CPU only"), ("8.0;9.0", "and CUDA (8.0;9.0)")])
def test_reports_the_extensions_architectures(monkeypatch: pytest.MonkeyPatch, archs: str, text: str) -> None:
    report = machine.Diagnosis()
    monkeypatch.setattr("andfast._C.CUDA_ARCHS", archs)
    machine.extension(report)
    assert text in report.lines[0][2]
    assert report.data["extension"] == {"built": True, "cuda_architectures": archs}


def test_reports_a_missing_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    report = machine.Diagnosis()
    monkeypatch.setattr("andfast.functional.extension.why_missing", lambda: "no compiled extension: no such file")
    machine.extension(report)
    assert report.lines == [("Extension", "note", "no compiled extension: no such file")]


def test_reports_a_gpu_without_a_cuda_part(monkeypatch: pytest.MonkeyPatch) -> None:
    report = machine.Diagnosis()
    monkeypatch.setattr("andfast._C.CUDA_ARCHS", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    machine.extension(report)
    assert report.lines[-1][1] == "note"
    assert "built without its CUDA part (a CPU-only wheel" in report.lines[-1][2]


def test_reports_cuda_ops_that_a_cpu_only_build_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    report = machine.Diagnosis()
    extension._why_not_cuda_here.cache_clear()
    monkeypatch.setattr("andfast._C.CUDA_ARCHS", "")
    monkeypatch.setattr(dispatch, "_capability", lambda *_: None)  # asks the device
    machine.ops(report, ["cuda"])
    extension._why_not_cuda_here.cache_clear()
    blur_pool = report.data["ops"]["cuda"]["blur_pool"]
    assert blur_pool["used"] == "reference"
    assert blur_pool["unavailable"]["cuda"].startswith("the extension was built without its CUDA part")
    (line,) = (text for _, _, text in report.lines if text.startswith("blur_pool "))
    assert "no cuda: the extension was built without its CUDA part" in line


def test_says_which_ops_were_not_chosen_by_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    report = machine.Diagnosis()
    basis = {"ascent_step": "default order", "residual_dense_block": "counts"}
    monkeypatch.setattr(dispatch, "basis", lambda op, _: basis.get(op))
    machine.ops(report, ["cpu"])
    lines = [text for _, _, text in report.lines if "not measured" in text]
    assert len(lines) == len(basis)
    for line, (op, reason) in zip(lines, basis.items(), strict=True):
        assert line.startswith(op)
        assert f", chosen by {reason}, not measured" in line
    noted = {op: entry["unmeasured"] for op, entry in report.data["ops"]["cpu"].items() if entry["unmeasured"]}
    assert noted == basis


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("no_color", [False, True])
def test_colors_on_terminals_only(monkeypatch: pytest.MonkeyPatch, no_color: bool) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    doctor.main(["--no-self-test"])
    assert ("\033[" in terminal.getvalue()) is not no_color


def test_valid_configuration(config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, record = run(replace(config, stages=["net", "gan"]), tmp_path)
    text = capsys.readouterr().out
    assert code == 0, text
    assert "Training with this configuration would run." in text
    assert record["configuration"]["data.train"] == {"files": 2, "usable": 1}
    assert set(record["configuration"]["memory"]["estimated"]) == {"net", "gan"}
    assert "estimated from shapes" in " ".join(text.split())
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------------------------------------------- problems


def problems(config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    code, record = run(config, tmp_path, *more)
    text = capsys.readouterr().out
    assert code == 1
    assert record["ready"] is False
    end = text[text.index("would not run:") :]
    for problem in record["problems"]:
        assert f"  - {problem}\n" in end
    return "\n".join(record["problems"])


def test_invalid_setting(config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "batch_size must be at least 1, was 0" in problems(config, tmp_path, capsys, "--batch_size", "0")


def test_unknown_setting(config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = problems(config, tmp_path, capsys, "--batch_sise", "2")
    assert "there is no option '--batch_sise'; did you mean '--batch_size'?" in text


@pytest.mark.usefixtures("fixed_estimate")
def test_no_usable_photographs(config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = replace(config.data, patch_size=256)
    text = problems(replace(config, data=data), tmp_path, capsys)
    assert "data.train: 0 of 2 images are at least 256 pixels high and wide" in text


@pytest.mark.usefixtures("fixed_estimate")
def test_missing_folder(config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = replace(config.data, train=[str(tmp_path / "nowhere")])
    assert "nowhere' must be an existing folder" in problems(replace(config, data=data), tmp_path, capsys)


@pytest.mark.usefixtures("fixed_estimate")
def test_init_weights_of_another_size(config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_weights(tmp_path / "g.safetensors", RRDBNet(4, features=8, blocks=2, growth=4))
    text = problems(replace(config, init_weights=tmp_path / "g.safetensors"), tmp_path, capsys)
    assert "generator.blocks must be that of init_weights" in text


@pytest.mark.usefixtures("fixed_estimate")
def test_unavailable_vgg(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(prospects, "reachable", lambda url: "no route to host")
    loss = replace(config.loss, vgg_weights="torchvision")
    config = replace(config, stages=["net", "gan"], loss=loss)
    text = problems(config, tmp_path, capsys)
    assert "VGG19 for stage gan is not at" in text
    assert "cannot be downloaded (no route to host)" in text
    monkeypatch.setattr(prospects, "reachable", lambda url: None)
    assert run(config, tmp_path)[0] == 0
    assert "VGG19 will be downloaded to" in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("fixed_estimate")
def test_invalid_vgg_file(config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "vgg.pth").write_bytes(b"not weights")
    config = replace(config, stages=["net", "gan"], loss=replace(config.loss, vgg_weights=str(tmp_path / "vgg.pth")))
    assert "vgg.pth cannot be read as a file of weights" in problems(config, tmp_path, capsys)


def test_too_little_memory_and_disk(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prospects, "host_memory", lambda: (1_000_000, 2_000_000))
    monkeypatch.setattr(prospects, "free_bytes", lambda folder: 1000)
    text = problems(config, tmp_path, capsys)
    assert "memory for stage net, estimated from shapes" in text
    assert "the machine has 1 MB of 2 MB available" in text
    assert "disk: checkpoints require about" in text


def test_failed_self_test(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    results = [
        SelfTestResult("blur_pool", "cpp", torch.float32, False, float("nan"), 0.1, "the result is off"),
        SelfTestResult("blur_pool", "reference", torch.float32, False, 0.1, 0.1, "unused and off"),
    ]
    monkeypatch.setattr(machine, "self_test", lambda *_: results)
    monkeypatch.setattr(machine.dispatch, "chosen", lambda _: {"blur_pool": "cpp"})
    assert doctor.main(["--json", str(tmp_path / "found.json")]) == 1
    assert json.loads((tmp_path / "found.json").read_text())["self_test"][0]["error"] is None
    end = capsys.readouterr().out.partition("would not run:")[2]
    assert "blur_pool, cpp, float32: the result is off" in end
    assert "unused and off" not in end


def test_failed_estimate_is_reported(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise NotImplementedError("no such\nfake kernel")

    monkeypatch.setattr(prospects, "step_memory", fail)
    assert run(config, tmp_path)[0] == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "memory: no estimate, NotImplementedError: no such fake kernel" in text


def test_json_in_a_missing_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert doctor.main(["--json", str(tmp_path / "no" / "folder.json")]) == 2
    assert capsys.readouterr().err.startswith("error: --json must be in an existing folder, was ")


def test_unreachable_url() -> None:
    assert machine.reachable("http://127.0.0.1:9/nothing", seconds=0.5) is not None
    assert machine.reachable("not a url") is not None


# ---------------------------------------------------------------------------------------------------------- estimates


@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")
@pytest.mark.parametrize("stage", ["net", "gan"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_estimate_matches_a_real_step(config: TrainConfig, stage: str, precision: str) -> None:
    config = replace(config, precision=precision)
    estimated = step_memory(config, stage)
    step = build_step(config, stage, build_generator(config), ProcessGroup(0, 1, torch.device("cpu")))
    networks = [network for network in (step.generator, step.discriminator) if network is not None]
    for parameter in (parameter for network in networks for parameter in network.parameters()):
        parameter.grad = torch.empty_like(parameter)
    hr = torch.rand(2, 3, 32, 32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step.gradients([hr], 0)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    measured = live.max() + hr.nbytes
    assert estimated.peak <= measured <= 2.5 * estimated.peak


def test_state_is_exact(config: TrainConfig) -> None:
    weights = sum(parameter.nbytes for parameter in build_generator(config).parameters())
    assert step_memory(config, "net").state == 5 * weights  # weights, gradients, two Adam states, EMA
    assert step_memory(replace(config, ema_decay=0.0), "net").state == 4 * weights


def test_peak_scales_with_the_batch_size(config: TrainConfig) -> None:
    small, large = (step_memory(replace(config, batch_size=n), "net").peak for n in (2, 4))
    assert 1.9 < large / small <= 2.0


@pytest.mark.slow
def test_chunking_bounds_the_memory_of_the_ascent() -> None:
    """At the paper's size in stage net, counted as the CPU runs it, whose ascent step has temporaries."""
    paper = TrainConfig(output=Path("x"), device="cpu", adversary=AdversaryConfig(steps=3))
    chunked, unchunked = (
        step_memory(replace(paper, adversary=replace(paper.adversary, chunk_size=size)), "net") for size in (None, 0)
    )
    assert chunked.peak == max(chunked.parts.values())
    assert unchunked.parts["ascent"] > 1.9 * chunked.parts["ascent"]
    training_pass = 0.16 * 48 * 10**9  # 0.16 GB per image
    assert chunked.parts["generator"] < training_pass


@pytest.mark.parametrize("accumulate", [1, 3])
def test_captured_step_adds_its_static_tensors(config: TrainConfig, accumulate: int) -> None:
    config = replace(config, accumulate=accumulate)
    captured = step_memory(replace(config, cuda_graph=True), "net")
    eager = step_memory(config, "net")
    micro_batch = 4 * config.batch_size * 3 * config.data.patch_size**2
    identities = eager.parts["identity"] - accumulate * micro_batch
    assert captured.peak == eager.peak + (accumulate + 1) * micro_batch + identities
    assert identities > 0


def test_estimate_leaves_the_random_state(config: TrainConfig) -> None:
    before = torch.get_rng_state()
    step_memory(config, "gan")
    assert torch.equal(before, torch.get_rng_state())


def test_counts_usable_photographs(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from andfast.data.sources import find_images  # noqa: PLC0415

    (photos / "broken.png").write_bytes(b"not an image")
    counts = photographs(find_images([photos]), 32)
    assert (counts.files, counts.usable, counts.bytes, counts.exact) == (3, 1, 80 * 90 * 3, True)
    monkeypatch.setattr("andfast.diagnosis.memory._HEADERS", 1)
    assert not photographs(find_images([photos]), 1).exact


def test_free_space_of_a_missing_folder(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") == pytest.approx(free_bytes(tmp_path), rel=0.1)
