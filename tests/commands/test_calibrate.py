"""The calibrate command: pairs whose gain, kernel, shift and noise are known; radii; files; invalid input."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor

from andfast import calibrate
from andfast.adversary import Ball, ConvolutionRadii
from andfast.calibration.fit import MIN_SIDE, fit_pair
from andfast.calibration.least_squares import OFFSETS, Model, differences
from andfast.calibration.measure import psnr
from andfast.calibration.radii import NEGLIGIBLE, check_ball
from andfast.calibration.shifted_pool import shifted_pool
from andfast.config.parsing import parse_arguments
from andfast.functional import blur_pool
from andfast.nn import RRDBNet
from andfast.nn.interpolation_start import start_as_interpolation
from andfast.nn.weights import save_weights
from andfast.training.build import build_attack_settings

GAIN = torch.tensor([1.04, 0.97, 1.1], dtype=torch.float64)[:, None, None]
OFFSET = torch.tensor([2.0, -3.0, 1.0], dtype=torch.float64)[:, None, None]


def kernel() -> Tensor:
    """A point-symmetric blur with negative corners, of sum 1."""
    taps = torch.zeros(7, 7, dtype=torch.float64)
    for y, x, value in ((0, 1, 0.12), (1, 0, 0.08), (2, 2, -0.02), (1, -1, 0.03)):
        taps[3 + y, 3 + x] = taps[3 - y, 3 - x] = value
    taps[3, 3] = 1 - taps.sum()
    return taps


def texture(height: int, width: int, seed: int = 0) -> Tensor:
    """Colored noise with a spectrum like a photograph's, (3, H, W) in levels, float64, from 30 to 220."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.fft.rfft2(torch.randn(3, height, width, generator=generator, dtype=torch.float64))
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]).double()
    image = torch.fft.irfft2(spectrum * (frequency < 0.3) / (frequency + 0.02), s=(height, width))
    image = image + image.mean(0) * 2  # channels of a photograph resemble each other
    low, high = image.amin(), image.amax()
    return 30 + 190 * (image - low) / (high - low)


def shifted(hr: Tensor, down: float, right: float) -> Tensor:
    """A periodic image, moved by its Fourier transform."""
    y, x = torch.fft.fftfreq(hr.shape[1]).double(), torch.fft.rfftfreq(hr.shape[2]).double()
    phase = torch.exp(-2j * math.pi * (y[:, None] * down + x[None] * right))
    return torch.fft.irfft2(torch.fft.rfft2(hr) * phase, s=hr.shape[1:])


def degraded(hr: Tensor, *, shift: tuple[float, float] = (0, 0), blur: bool = True, noise: float = 0.0) -> Tensor:
    """LR of known parts."""
    lr = blur_pool(shifted(hr, *shift)[None], 4)[0]
    if blur:
        lr = F.conv2d(F.pad(lr[:, None], (3, 3, 3, 3), mode="reflect"), kernel()[None, None])[:, 0]
    generator = torch.Generator().manual_seed(1)
    return GAIN * lr + OFFSET + noise * torch.randn(lr.shape, generator=generator, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------- shifted pools


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_shifted_pool_without_shift_is_blur_pool(scale: int) -> None:
    hr = torch.rand(3, 11 * scale, 7 * scale, dtype=torch.float64)
    whole = shifted_pool(hr, scale, (0.0, 0.0), (0, 11), (0, 7))[0]
    torch.testing.assert_close(whole, blur_pool(hr[None], scale)[0], rtol=0, atol=1e-12)
    window = shifted_pool(hr, scale, (0.0, 0.0), (2, 9), (1, 6))[0]
    torch.testing.assert_close(window, whole[:, 2:9, 1:6], rtol=0, atol=1e-12)


def test_shifted_pool_moves_content_and_keeps_constants() -> None:
    hr = texture(160, 192)
    shift = (1.37, -2.58)
    moved = shifted_pool(hr, 4, shift, (6, 34), (6, 42))
    expected = blur_pool(shifted(hr, *shift)[None], 4)[0, :, 6:34, 6:42]
    torch.testing.assert_close(moved[0], expected, rtol=0, atol=0.01)
    constant = shifted_pool(torch.full((3, 40, 40), 7.0, dtype=torch.float64), 4, shift, (-3, 13), (-3, 13))
    torch.testing.assert_close(constant[0], torch.full_like(constant[0], 7.0))
    torch.testing.assert_close(constant[1:], torch.zeros_like(constant[1:]), rtol=0, atol=1e-9)


def test_shifted_pool_derivatives() -> None:
    hr, step = texture(96, 96), 1e-4
    _, down, right = shifted_pool(hr, 4, (0.3, -0.2), (4, 20), (4, 20))
    for slope, (y, x) in ((down, (step, 0.0)), (right, (0.0, step))):
        after, before = (shifted_pool(hr, 4, (0.3 + s * y, -0.2 + s * x), (4, 20), (4, 20))[0] for s in (1, -1))
        torch.testing.assert_close(slope, (after - before) / (2 * step), rtol=0, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------- fits


def test_model_filters_with_its_kernel() -> None:
    coefficients = torch.tensor([kernel()[3 + y, 3 + x] for y, x in OFFSETS], dtype=torch.float64)
    model = Model(GAIN.flatten(), OFFSET.flatten(), coefficients)
    torch.testing.assert_close(model.kernel, kernel())
    image = torch.rand(3, 13, 16, dtype=torch.float64)
    expected = GAIN * F.conv2d(image[:, None], kernel()[None, None])[:, 0] + OFFSET
    torch.testing.assert_close(model(image), expected)
    assert differences(image).shape == (24, 3, 7, 10)
    waves = [math.cos(2 * math.pi * x / 8) for x in range(-3, 4)]
    by_axis = [sum(float(kernel().sum(axis)[i]) * waves[i] for i in range(7)) for axis in (0, 1)]
    assert model.response(1 / 8) == pytest.approx(sum(by_axis) / 2)


def test_fit_of_exact_pooling_is_the_identity() -> None:
    hr = texture(160, 192)
    fit = fit_pair(hr, blur_pool(hr[None], 4)[0], 4)
    assert max(map(abs, fit.shift)) < 1e-6
    assert max(fit.distances.values()) < 1e-4
    torch.testing.assert_close(fit.model.gain, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.6, -0.35)])
def test_fit_recovers_known_parts(shift: tuple[float, float]) -> None:
    """Gain, offset, kernel and shift in float64, without noise; the shift is a part of a pixel."""
    hr = texture(256, 320)
    fit = fit_pair(hr, degraded(hr, shift=shift), 4)
    assert fit.shift == pytest.approx(shift, abs=0.005)
    assert fit.block_shift < 0.01
    torch.testing.assert_close(fit.model.gain, GAIN.flatten(), rtol=0, atol=2e-3)
    torch.testing.assert_close(fit.model.offset, OFFSET.flatten(), rtol=0, atol=0.2)
    torch.testing.assert_close(fit.model.kernel, kernel(), rtol=0, atol=2e-3)
    assert fit.distances["noise"] < 0.1
    change = GAIN * fit.registered + OFFSET - fit.registered
    assert fit.distances["color"] == pytest.approx(float(change[:, fit.valid].square().mean().sqrt()), rel=0.01)


def test_fit_recovers_noise_and_does_not_take_it_for_other_parts() -> None:
    hr = texture(256, 256)
    fit = fit_pair(hr, degraded(hr, noise=3.0), 4)
    for place in ("noise", "noise_flat", "noise_textured"):
        assert fit.distances[place] == pytest.approx(3.0, rel=0.05)
    assert fit.distances["rest"] < 0.15
    torch.testing.assert_close(fit.model.kernel, kernel(), rtol=0, atol=0.03)
    assert int(fit.flat.sum()) == pytest.approx(int(fit.valid.sum()) / 4, rel=0.01)
    assert not (fit.flat & fit.textured).any()


def test_fit_does_not_take_varying_misregistration_for_blur() -> None:
    """Each quarter of LR is shifted its own way by half an HR pixel; a kernel of the plain fit would be a blur."""
    hr = texture(256, 256)
    parts = [degraded(hr, shift=shift, blur=False) for shift in ((0.5, 0.5), (0.5, -0.5), (-0.5, 0.5), (-0.5, -0.5))]
    lr = torch.cat(
        [
            torch.cat([parts[0][:, :32, :32], parts[1][:, :32, 32:]], 2),
            torch.cat([parts[2][:, 32:, :32], parts[3][:, 32:, 32:]], 2),
        ],
        1,
    )
    fit = fit_pair(hr, lr, 4)
    assert fit.block_shift == pytest.approx(0.5, abs=0.05)
    assert fit.model.response(1 / 4) == pytest.approx(1.0, abs=0.01)
    assert max(map(abs, fit.shift)) < 0.1


def test_fit_finds_what_is_between_channels() -> None:
    """Red gets a second difference of green: that is no kernel for all channels."""
    hr = texture(256, 256)
    lr = blur_pool(hr[None], 4)[0]
    extra = torch.zeros_like(lr)
    extra[0, :, 1:-1] = 0.2 * (lr[1, :, 2:] + lr[1, :, :-2] - 2 * lr[1, :, 1:-1])
    fit = fit_pair(hr, lr + extra, 4)
    size = float(extra[:, fit.valid].square().mean().sqrt())
    assert 0.5 * size < fit.distances["rest"] <= 1.05 * size
    assert fit.distances["noise"] < 0.05 * size


@pytest.mark.parametrize(("height", "width"), [(29, 37), (24, 71), (53, 24)])
def test_fit_of_odd_sizes(height: int, width: int) -> None:
    hr = texture(4 * height, 4 * width)
    fit = fit_pair(hr, degraded(hr), 4)
    assert fit.fitted.shape == (3, height, width)
    torch.testing.assert_close(fit.model.kernel, kernel(), rtol=0, atol=0.01)
    assert fit.distances["noise"] < 0.2


def test_fit_ignores_saturated_pixels() -> None:
    hr = texture(256, 256)
    lr = degraded(hr)
    lr[:, 20:30] = 255.0
    fit = fit_pair(hr, lr, 4)
    assert not fit.valid[20:30].any()
    torch.testing.assert_close(fit.model.gain, GAIN.flatten(), rtol=0, atol=5e-3)


def test_fit_of_a_flat_pair() -> None:
    fit = fit_pair(torch.full((3, 128, 128), 90.0), torch.full((3, 32, 32), 100.0), 4)
    assert fit.shift == (0, 0)
    assert fit.distances["noise"] < 1e-6


def test_fit_rejects_what_it_cannot_use() -> None:
    hr = texture(128, 128)
    with pytest.raises(ValueError, match=r"hr must have 4 times lr's size, were \(3, 128, 128\) and \(3, 32, 31\)"):
        fit_pair(hr, torch.zeros(3, 32, 31), 4)
    with pytest.raises(ValueError, match=f"LR must be at least {MIN_SIDE} pixels wide and high, was 20x32"):
        fit_pair(texture(128, 80), torch.zeros(3, 32, 20), 4)
    with pytest.raises(ValueError, match="25% of LR's pixels must not be saturated, were 0%"):
        fit_pair(hr, torch.full((3, 32, 32), 255.0), 4)


def test_psnr() -> None:
    assert psnr(255.0) == 0
    assert psnr(0.0) == 200
    assert psnr(1 / math.sqrt(12)) == pytest.approx(NEGLIGIBLE)


# --------------------------------------------------------------------------------------------------------- the command


def save(image: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = image.clamp(0, 255).round().to(torch.uint8)
    Image.fromarray(np.ascontiguousarray(rounded.permute(1, 2, 0).numpy())).save(path)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Three pairs of known parts, and one that is shifted by three pixels."""
    folder = tmp_path / "pairs"
    for number, shift in enumerate([(0.2, 0.1), (0.0, 0.0), (-0.3, 0.2), (3.0, 0.0)]):
        hr = texture(128, 128, seed=number)
        save(hr, folder / "HR" / f"{number}.png")
        save(degraded(hr, shift=shift, noise=2.0), folder / "LR" / f"{number}.png")
    return folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    generator = RRDBNet(4, features=8, blocks=1, growth=4)
    start_as_interpolation(generator)
    save_weights(tmp_path / "g.safetensors", generator)
    return tmp_path / "g.safetensors"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = calibrate.main([*map(str, arguments), "--quiet"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def shift_in(message: str) -> float:
    """The shift down in a message."""
    return float(message.split("relative to HR by ")[1].split(maxsplit=1)[0])


def test_measures_pairs_and_names_misregistered(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "calibration"
    code, text, error = run(capsys, "--pairs", pairs, "--output", out)
    assert code == 0
    assert "layout folders, x4, 3 pairs, 1 left out" in text
    assert error.startswith("misregistered pair 3: LR is shifted relative to HR by +")
    assert shift_in(error) == pytest.approx(3.0, abs=0.05)
    record = json.loads((out / "calibration.json").read_text())
    assert len(record["pairs"]) == 3
    assert len(record["misregistered"]) == 1
    quantiles = record["quantiles"]
    assert quantiles["at"] == [0.1, 0.5, 0.9]
    assert quantiles["gain_red"][1] == pytest.approx(1.04, abs=0.03)
    assert quantiles["gain_blue"][1] == pytest.approx(1.1, abs=0.03)
    assert quantiles["noise"][1] == pytest.approx(2.0, abs=0.2)
    assert quantiles["psnr"][1] < quantiles["psnr_affine"][1] < quantiles["psnr_kernel"][1]
    numbers = next(iter(record["pairs"].values()))
    assert np.asarray(numbers["kernel_taps"]).shape == (7, 7)
    assert "calibration" not in record
    with Image.open(out / "calibration.png") as picture:
        assert picture.width > 6 * 128
    before = (out / "calibration.json").read_bytes()
    code, _, error = run(capsys, "--pairs", pairs, "--output", out)
    assert (code, error) == (1, f"error: {out}/calibration.json is there already; --overwrite replaces it\n")
    assert (out / "calibration.json").read_bytes() == before
    assert run(capsys, "--pairs", pairs, "--output", out, "--overwrite", "--max-shift", "inf")[0] == 0
    record = json.loads((out / "calibration.json").read_text())
    assert len(record["pairs"]) == 4
    assert record["max_shift"] is None


def test_finds_radii(pairs: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each part's attack reaches the pairs' median, and the printed lines are those radii."""
    small = ["--crop", "16", "--images", "1", "--degradation.channels", "8", "--adversary.steps", "1"]
    code, text, _ = run(capsys, "--pairs", pairs, "--weights", weights, "--output", tmp_path / "out", *small)
    assert code == 0
    record = json.loads((tmp_path / "out" / "calibration.json").read_text())
    calibration = record["calibration"]
    assert calibration["images"] == ["0"]
    for part in ("color", "kernel", "noise"):
        target = record["quantiles"][f"psnr_of_{part}"][1]
        assert calibration["parts"][part]["target_psnr"] == target
        assert calibration["parts"][part]["lr_psnr"] == pytest.approx(target, abs=0.21)
        assert calibration["radii"][part] > 0
    settings = yaml.safe_load(text[text.index("\nadversary:") : text.index(f"  {tmp_path / 'out'}")])
    options = [f"--adversary.{name}={value}" for name, value in settings["adversary"].items()]
    options.append(f"--data.patch_size={settings['data']['patch_size']}")
    config, _ = parse_arguments([*options, "--output=x", "--data.train=[.]"])
    ball = build_attack_settings(config, "net").ball
    assert dict(zip(ball.names, ball.radii, strict=True)) == pytest.approx(calibration["radii"], rel=1e-3)


def test_balls_without_parts_to_scale_raise() -> None:
    check_ball(Ball(ConvolutionRadii(0.0, 0.2, 0.02), 0.1, 0.0))
    with pytest.raises(ValueError, match=r"adversary\.radius_kernel must be above 0, where the search starts, was 0"):
        check_ball(Ball(ConvolutionRadii(0.0, 0.0, 0.02), 0.1, 0.0))
    with pytest.raises(ValueError, match=r"adversary\.preset must be 'symmetric'"):
        check_ball(Ball(0.1, 0.1, 0.1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "{folder}/nothing"], "must be an existing folder of pairs, was"),
        (["--pairs", "{folder}"], "no pairs found"),
        (["--pairs", "{few}"], "at least 3 registered pairs are needed, were 2 of 2"),
        (["--pairs", "{unfit}"], "1 invalid pairs; fix them, or skip them with --skip-invalid"),
        (["--pairs", "{pairs}", "--output", "{weights}"], "--output must be a folder"),
        (["--pairs", "{pairs}", "--adversary.steps=2"], "settings of the adversary must come with --weights, were"),
        (["--pairs", "{pairs}", "--weights", "{folder}/none.safetensors"], "none.safetensors: no such file"),
        (["--pairs", "{pairs}", "--weights", "{x2}"], "no valid pair of scale 2, which is that of --weights"),
        (["--pairs", "{pairs}", "--weights", "{x2}", "--scale", "4"], "weights must be for scale 4, that of --scale"),
        (["--pairs", "{pairs}", "--weights", "{weights}", "--adversary.radius_rest=0"], "radius_rest must be above 0"),
        (["--pairs", "{pairs}", "--weights", "{weights}", "--adversary.preset=strong"], "preset must be 'symmetric'"),
        (["--pairs", "{pairs}", "--weights", "{weights}", "--adversary.step=3"], "did you mean '--adversary.steps'"),
    ],
)
def test_rejects_invalid_input(
    arguments: list[str],
    message: str,
    pairs: Path,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    x2 = tmp_path / "x2.safetensors"
    save_weights(x2, RRDBNet(2, features=8, blocks=1, growth=4))
    few, unfit, empty = (tmp_path / name for name in ("few", "unfit", "empty"))
    empty.mkdir()
    for number in range(2):
        hr = texture(128, 128, seed=number)
        for folder in (few, unfit):
            save(hr, folder / "HR" / f"{number}.png")
            save(degraded(hr), folder / "LR" / f"{number}.png")
    save(degraded(hr)[:, :30], unfit / "LR" / "1.png")
    places = {"folder": empty, "few": few, "unfit": unfit, "pairs": pairs, "weights": weights, "x2": x2}
    code, _, error = run(capsys, *(argument.format(**places) for argument in arguments))
    assert code == 1
    last = error.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
