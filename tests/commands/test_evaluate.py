"""The evaluate command: scores of networks and image folders; table, JSON and sheet."""

import json
import math
import warnings
from statistics import fmean, median

import numpy as np
import pytest
import torch
from evaluation_cases import NAMES, make_outputs, make_pairs, photograph, read, run, save, weights
from PIL import Image
from skimage import data
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from andfast.evaluate import main
from andfast.evaluation.pairs import downscale
from andfast.metrics.niqe_parameters import NIQEParameters, write_niqe_parameters


@pytest.fixture
def pairs(tmp_path):
    return make_pairs(tmp_path / "pairs")


@pytest.fixture
def outputs(tmp_path):
    return make_outputs(tmp_path / "external")


@pytest.fixture
def niqe_file(tmp_path):
    generator = np.random.default_rng(0)
    draws = generator.normal(1, 0.3, (100, 36))
    write_niqe_parameters(NIQEParameters(draws.mean(0), np.cov(draws, rowvar=False), "made"), tmp_path / "niqe.npz")
    return str(tmp_path / "niqe.npz")


def test_output_folder_scores_match_scikit_image(pairs, outputs, tmp_path, capsys):
    target = tmp_path / "scores.json"
    code, out, err = run(capsys, "--data", pairs, "--outputs", outputs, "--json", target, "--images")
    assert (code, err) == (0, "")
    assert f"{pairs}: layout folders, x4, 3 pairs\n" in out
    record = json.loads(target.read_text())
    assert [image["name"] for image in record["images"]] == list(NAMES)
    for image in record["images"]:
        hr, sr = read(pairs / "HR" / f"{image['name']}.png"), read(outputs / f"{image['name']}_out.png")
        a, b = rgb2ycbcr(hr)[..., 0], rgb2ycbcr(sr)[..., 0]
        assert image["psnr"] == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), rel=1e-9)
        _, ssim = structural_similarity(
            a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, full=True
        )
        assert image["ssim"] == pytest.approx(ssim[5:-5, 5:-5].mean(), rel=1e-9)
        assert f"{image['psnr']:.2f}" in out
    for metric in ("psnr", "ssim"):
        values = [image[metric] for image in record["images"]]
        assert record["mean"][metric] == pytest.approx(fmean(values))
        assert record["median"][metric] == median(values)
    assert "external" in out
    assert "bicubic" in out


def test_json_states_protocol_and_versions(pairs, outputs, niqe_file, tmp_path, capsys):
    target = tmp_path / "scores.json"
    arguments = ("--data", pairs, "--outputs", outputs, "--json", target, "--metrics", "niqe", "ssim", "psnr")
    code, out, _ = run(
        capsys, *arguments, "--niqe-parameters", niqe_file, "--crop-border", 4, "--protocol", "full-rounded"
    )
    assert code == 0
    record = json.loads(target.read_text())
    assert record["layout"] == "folders"
    assert (record["scale"], record["pairs"], record["left_out_pairs"]) == (4, 3, {})
    protocol = record["protocol"]
    assert (protocol["y_range"], protocol["y_rounded"], protocol["crop_border"]) == ("full", True, 4)
    assert protocol["niqe"] == {"parameters": "niqe.npz", "block": 96, "y_rounded": True, "y_range": "full"}
    assert protocol["lr"] == "as stored"
    assert "Y of full-range BT.601, rounded, border 4" in out
    assert {"andfast", "torch", "numpy", "pillow", "lpips", "python", "commit"} <= record["versions"].keys()
    assert [method["method"] for method in record["methods"]] == ["bicubic", "external"]
    assert record["method"] == "external"
    assert record["images"] == record["methods"][1]["images"]
    for method in record["methods"]:
        for image in method["images"]:
            assert set(image) == {"name", "psnr", "ssim", "niqe"}
            assert all(math.isfinite(image[metric]) for metric in ("psnr", "ssim", "niqe"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["external", "niqe.npz", "pairs", "scores.json"]


def test_studio_psnr_is_1_32_db_above_full(pairs, outputs, tmp_path, capsys):
    means = {}
    for protocol in ("studio", "full"):
        target = tmp_path / f"{protocol}.json"
        run(capsys, "--data", pairs, "--outputs", outputs, "--json", target, "--protocol", protocol)
        means[protocol] = json.loads(target.read_text())["mean"]["psnr"]
    assert means["studio"] - means["full"] == pytest.approx(1.3220, abs=1e-4)


def test_color_shift_is_reported_with_a_warning(pairs, tmp_path, capsys):
    offset = torch.tensor([10, 0, -6]).view(3, 1, 1)
    offsets = []
    for name in NAMES:
        hr = photograph(name)
        sr = (hr + offset).clamp(0, 255).byte()
        offsets.append((sr.double() - hr).mean((1, 2)))
        save(sr, tmp_path / "tinted" / f"{name}.png")
    target = tmp_path / "scores.json"
    code, out, err = run(capsys, "--data", pairs, "--outputs", tmp_path / "tinted", "--json", target)
    assert code == 0
    record = json.loads(target.read_text())
    for image, expected in zip(record["images"], offsets, strict=True):
        assert image["color_offset"] == pytest.approx(expected.tolist(), rel=1e-9)
        assert image["color_shift"] == pytest.approx(expected.abs().max().item(), rel=1e-9)
        hr, sr = read(pairs / "HR" / f"{image['name']}.png"), read(tmp_path / "tinted" / f"{image['name']}.png")
        assert image["psnr_rgb"] == pytest.approx(peak_signal_noise_ratio(hr, sr, data_range=255), rel=1e-9)
    mean = torch.stack(offsets).mean(0)
    shift = record["mean"]["color_shift"]
    assert shift == pytest.approx(fmean(offset.abs().max().item() for offset in offsets))
    assert 9 < shift <= 10
    assert err.startswith(
        f"warning: tinted shifts colors by {shift:.1f} levels of 255 on average "
        f"(mean R {mean[0]:+.1f}, G {mean[1]:+.1f}, B {mean[2]:+.1f}; bicubic: 0."
    )
    assert len(err.splitlines()) == 1
    assert "SHIFT: lower is better" in out
    assert record["protocol"]["color_shift"] == "largest absolute mean of SR - HR over R, G and B, in levels of 255"


def test_modcrop_is_stated_in_the_protocol(tmp_path, capsys):
    hr = photograph("coffee", 203, 201)
    save(hr, tmp_path / "pairs" / "HR" / "a.png")
    save(downscale(hr[:, :200, :200], 4), tmp_path / "pairs" / "LR" / "a.png")
    save(hr, tmp_path / "out" / "a.png")
    target = tmp_path / "scores.json"
    arguments = ("--data", tmp_path / "pairs", "--outputs", tmp_path / "out", "--json", target)
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert "--modcrop crops HR" in err
    code, out, _ = run(capsys, *arguments, "--modcrop")
    assert code == 0
    assert "1 HR images are cropped to a multiple of 4" in out
    record = json.loads(target.read_text())
    assert record["protocol"]["hr"] == "1 cropped to a multiple of the scale at the bottom and right"
    assert record["images"][0]["reasons"]["psnr"] == "infinite: SR equals HR"  # outputs are cropped like HR


def test_hr_may_be_a_link(tmp_path, capsys):
    save(photograph("coffee"), tmp_path / "HR" / "a.png")
    (tmp_path / "HR" / "a_noise.png").symlink_to("a.png")
    lr = downscale(photograph("coffee"), 4)
    save(lr, tmp_path / "LR" / "a.png")
    save((lr + 8 * torch.randn(lr.shape)).clamp(0, 255).byte(), tmp_path / "LR" / "a_noise.png")
    code, out, err = run(capsys, "--data", tmp_path, "--weights", "bicubic", "--images")
    assert (code, err) == (0, "")
    assert "2 pairs" in out


def test_progress_in_a_log_is_a_few_lines(pairs, capsys):
    assert main(["--data", str(pairs), "--weights", "bicubic"]) == 0
    err = capsys.readouterr().err
    assert "checking: 100%" in err
    assert "scoring: 100%" in err
    assert err.count("%|") <= 4  # start and end of each


def test_weights_whole_and_tiled(pairs, tmp_path, capsys):
    file = weights(tmp_path / "net.safetensors")
    records = []
    for extra in ((), ("--tile", 40, "--overlap", 20)):
        target = tmp_path / "scores.json"
        code, _, _ = run(capsys, "--data", pairs, "--weights", file, "--json", target, *extra)
        assert code == 0
        records.append(json.loads(target.read_text()))
    whole, tiled = records
    assert whole["method"] == "net"
    assert whole["mean"]["psnr"] == pytest.approx(tiled["mean"]["psnr"], abs=0.02)
    assert whole["mean"]["psnr"] < whole["methods"][0]["mean"]["psnr"]  # untrained: worse than bicubic


@pytest.mark.gpu
def test_gpu_matches_cpu(pairs, tmp_path, capsys):
    file = weights(tmp_path / "net.safetensors")
    means = []
    for device in ("cpu", "cuda"):
        target = tmp_path / f"{device}.json"
        code, _, _ = run(capsys, "--data", pairs, "--weights", file, "--json", target, "--device", device)
        assert code == 0
        means.append(json.loads(target.read_text())["mean"])
    assert means[0] == pytest.approx(means[1], abs=0.01)


def test_compare_networks_and_folders(pairs, outputs, tmp_path, capsys):
    first, second = weights(tmp_path / "a" / "net.safetensors"), weights(tmp_path / "b" / "net.safetensors", seed=1)
    sheet, target = tmp_path / "sheet.png", tmp_path / "scores.json"
    code, out, err = run(
        capsys,
        "--data",
        pairs,
        "--compare",
        first,
        second,
        outputs,
        "--sheet",
        sheet,
        "--sheet-rows",
        2,
        "--json",
        target,
    )
    assert code == 0
    assert all(line.startswith("warning: ") for line in err.splitlines())  # untrained networks shift colors
    names = [method["method"] for method in json.loads(target.read_text())["methods"]]
    assert names == ["bicubic", "net", "b/net", "external"]
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[2:6]] == names
    assert lines[1].split() == ["mean", "PSNR", "SSIM", "PSNR-RGB", "SHIFT"]
    assert lines[5].count("*") == 3  # HR plus noise is by far the best
    assert [line.count("*") for line in lines[2:5]] == [1, 0, 0]  # but bicubic shifts colors least
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"
        width, height = picture.size
    assert width > 6 * 224  # HR, LR and four methods
    assert 2 * 224 < height < 3 * 256 + 200


def test_sheet_shows_the_crop_with_the_largest_difference(pairs, tmp_path, capsys):
    for name in NAMES:
        sr = photograph(name)
        if name == "coffee":
            sr[:, 100:140, 20:60] = 255 - sr[:, 100:140, 20:60]
        save(sr, tmp_path / "changed" / f"{name}.png")
        save(photograph(name), tmp_path / "same" / f"{name}.png")
    sheet = tmp_path / "sheet.png"
    code, _, _ = run(
        capsys,
        "--data",
        pairs,
        "--compare",
        tmp_path / "same",
        tmp_path / "changed",
        "--sheet",
        sheet,
        "--sheet-rows",
        1,
    )
    assert code == 0
    pixels = read(sheet).astype(int)
    patch = read(tmp_path / "changed" / "coffee.png")[104:136, 24:56].repeat(2, 0).repeat(2, 1).astype(int)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, patch.shape)[:, :, 0]
    rows, columns = np.nonzero(
        (windows[:, :, 0, 0] == patch[0, 0]).all(-1) & (windows[:, :, -1, -1] == patch[-1, -1]).all(-1)
    )
    assert any((windows[r, c] == patch).all() for r, c in zip(rows, columns, strict=True))


@pytest.mark.parametrize("metric", ["psnr", "niqe", "ssim"])
def test_undefined_metric_is_null_with_a_reason_and_excluded(metric, pairs, tmp_path, niqe_file, capsys):
    for name in NAMES:
        save(photograph(name), tmp_path / "copies" / f"{name}.png")
    flat = torch.full((3, 208, 200), 99, dtype=torch.uint8)
    save(flat, pairs / "HR" / "flat.png")
    save(flat[:, :52, :50], pairs / "LR" / "flat.png")
    save(flat, tmp_path / "copies" / "flat.png")
    tiny = photograph("coffee")[:, :8, :8]
    save(tiny, pairs / "HR" / "tiny.png")
    save(downscale(tiny, 4), pairs / "LR" / "tiny.png")
    save(tiny + 1, tmp_path / "copies" / "tiny.png")
    target = tmp_path / "scores.json"
    code, out, _ = run(
        capsys, "--data", pairs, "--outputs", tmp_path / "copies", "--metrics", metric, "--niqe-parameters", niqe_file,
        "--json", target,
    )  # fmt: skip
    assert code == 0
    record = json.loads(target.read_text())
    images = {image["name"]: image for image in record["images"]}
    assert record["left_out"][metric] == {"psnr": 4, "niqe": 2, "ssim": 1}[metric]
    if metric == "psnr":
        assert images["flat"]["psnr"] is None
        assert images["flat"]["reasons"] == {"psnr": "infinite: SR equals HR"}
        assert record["mean"]["psnr"] == images["tiny"]["psnr"]
    elif metric == "niqe":
        assert images["flat"]["reasons"]["niqe"].startswith("flat: 0 of 4 blocks")
        assert images["tiny"]["reasons"]["niqe"].startswith("too small: 8x8")
        assert record["mean"]["niqe"] == pytest.approx(fmean(images[name]["niqe"] for name in NAMES))
    else:
        assert "at least 11 pixels" in images["tiny"]["reasons"]["ssim"]
        assert record["mean"]["ssim"] == 1
    assert f"copies: {metric.upper()} excludes" in out


@pytest.mark.parametrize(
    ("layout", "hr_file", "lr_file", "scale"),
    [
        ("drealsr", "Test_x4/test_HR/DSC_1_x4.png", "Test_x4/test_LR/DSC_1_x1.png", 4),
        ("drealsr", "Test_x3/test_HR/DSC_1_x1.png", "Test_x3/test_LR/DSC_1_x1.png", 3),
        ("super", "books/pan/Bin1/0000.png", "books/pan/Bin2/0000.png", 2),
        ("realsr", "Nikon/Test/4/Nikon_001_HR.png", "Nikon/Test/4/Nikon_001_LR4.png", 4),
        ("imagepairs", "ImagePairs_Test/0001_gt.png", "ImagePairs_Test/0001.png", None),
    ],
)
def test_benchmark_layouts_end_to_end(layout, hr_file, lr_file, scale, tmp_path, capsys):
    hr = photograph("coffee", 204, 216)
    save(hr, tmp_path / "data" / hr_file)
    save(downscale(hr, scale or 2), tmp_path / "data" / lr_file)
    save(hr, tmp_path / "out" / hr_file)  # outputs under HR's names
    options = ("--scale", scale) if scale else ()
    code, out, err = run(
        capsys, "--data", tmp_path / "data", "--outputs", tmp_path / "out", *options, "--json", tmp_path / "scores.json"
    )
    assert (code, err) == (0, "")
    assert f"layout {layout}, x{scale or 2}, 1 pairs" in out
    record = json.loads((tmp_path / "scores.json").read_text())
    assert (record["layout"], record["scale"]) == (layout, scale or 2)
    assert record["images"][0]["reasons"]["psnr"] == "infinite: SR equals HR"
    pillow = Image.fromarray(downscale(hr, scale or 2).permute(1, 2, 0).numpy()).resize(
        (216, 204), Image.Resampling.BICUBIC
    )
    expected = peak_signal_noise_ratio(
        rgb2ycbcr(hr.permute(1, 2, 0).numpy())[..., 0], rgb2ycbcr(pillow)[..., 0], data_range=255
    )
    assert record["methods"][0]["mean"]["psnr"] == pytest.approx(expected, abs=0.02)


def test_lr_at_hr_size_is_downscaled_and_reported(tmp_path, capsys):
    hr = photograph("coffee", 203, 301)
    save(hr, tmp_path / "Canon/Test/4/Canon_001_HR.png")
    save(hr, tmp_path / "Canon/Test/4/Canon_001_LR4.png")
    save(hr, tmp_path / "out/Canon_001.png")
    target = tmp_path / "scores.json"
    code, out, _ = run(capsys, "--data", tmp_path / "Canon", "--outputs", tmp_path / "out", "--json", target)
    assert code == 0
    assert "layout realsr, x4, 1 pairs" in out
    assert "1 LR images have HR's size and are downscaled by 4" in out
    record = json.loads(target.read_text())
    assert record["protocol"]["lr"].startswith("1 at HR size, downscaled: antialiased bicubic")
    assert record["images"][0]["reasons"]["psnr"] == "infinite: SR equals HR"  # cropped like HR


def test_lpips_matches_the_package(pairs, outputs, tmp_path, capsys):
    """With random backbone weights."""
    lpips = pytest.importorskip("lpips")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    state = {f"features.{name.partition('.')[2]}": value for name, value in network.net.named_parameters()}
    torch.save(state, tmp_path / "squeeze.pth")
    options = ("--metrics", "lpips", "--lpips-net", "squeeze", "--lpips-weights", tmp_path / "squeeze.pth")
    code, out, err = run(
        capsys, "--data", pairs, "--outputs", outputs, *options, "--json", tmp_path / "scores.json", "--crop-border", 4
    )
    assert (code, err) == (0, "")
    assert "LPIPS v0.1 (squeeze)" in out
    record = json.loads((tmp_path / "scores.json").read_text())
    assert record["protocol"]["lpips"] == {"version": "0.1", "net": "squeeze", "weights": "squeeze.pth"}
    for image in record["images"]:
        sr, hr = read(outputs / f"{image['name']}_out.png"), read(pairs / "HR" / f"{image['name']}.png")
        a, b = (torch.from_numpy(image[4:-4, 4:-4].transpose(2, 0, 1).copy())[None] / 127.5 - 1 for image in (sr, hr))
        with torch.no_grad():
            assert image["lpips"] == pytest.approx(network(a, b).item(), rel=1e-4)


def test_fit_niqe_and_evaluate(pairs, tmp_path, capsys):
    photos = tmp_path / "photos"
    for name in ("astronaut", "coffee", "chelsea", "rocket"):
        image = torch.from_numpy(np.asarray(getattr(data, name)()).transpose(2, 0, 1).copy())
        for top in range(0, image.shape[1] - 191, 96):
            for left in range(0, image.shape[2] - 191, 96):
                save(image[:, top : top + 192, left : left + 192], photos / f"{name}_{top}_{left}.png")
    count = len(list(photos.iterdir()))
    (photos / "broken.png").write_bytes(b"not an image")
    file, target = tmp_path / "fitted.npz", tmp_path / "scores.json"
    code, out, _ = run(
        capsys, "--fit-niqe", photos, "--niqe-parameters", file, "--data", pairs, "--compare", "bicubic",
        "--metrics", "niqe", "--json", target,
    )  # fmt: skip
    assert code == 0
    assert f"NIQE fitted to {count} photographs of {photos}, skipped 1 unreadable: {file}" in out
    assert json.loads(target.read_text())["method"] == "bicubic"
    assert json.loads(target.read_text())["mean"]["niqe"] > 0
    code, _, err = run(capsys, "--fit-niqe", photos, "--niqe-parameters", file)
    assert code == 1
    assert f"does not overwrite an existing file, was {file}" in err
    code, _, err = run(capsys, "--fit-niqe", pairs / "LR", "--niqe-parameters", tmp_path / "few.npz")
    assert code == 1
    assert "more than 36 sharp blocks" in err
    assert not (tmp_path / "few.npz").exists()
