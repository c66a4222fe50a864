"""NIQE against a plain NumPy implementation of the authors' steps, BasicSR's values, and parameter files."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from scipy.ndimage import correlate
from scipy.special import gamma
from skimage import data

from andfast.metrics import luma
from andfast.metrics.niqe import NIQE, UndefinedNIQEError, fit_niqe, niqe_features
from andfast.metrics.niqe_parameters import NIQEParameters, read_niqe_parameters, write_niqe_parameters

_SHARED = Path(__file__).parents[3] / "shared" / "data" / "niqe_official_parameters.npz"
OFFICIAL = Path(os.environ.get("ANDFAST_NIQE_PARAMETERS", _SHARED))


def photograph(name):
    return torch.from_numpy(np.asarray(getattr(data, name)()).transpose(2, 0, 1).copy())


def niqe(image, parameters, **options):
    return NIQE(parameters)(image, **options)


def crops():
    """192 x 192 crops of scikit-image photographs."""
    images = [photograph(name) for name in ("astronaut", "coffee", "chelsea", "rocket")]
    return [
        image[:, top : top + 192, left : left + 192]
        for image in images
        for top in range(0, image.shape[1] - 191, 96)
        for left in range(0, image.shape[2] - 191, 96)
    ]


@pytest.fixture(scope="module")
def parameters():
    """Sufficient for tests, too few photographs for real use."""
    return fit_niqe(crops())


# ------------------------------------------------------------------------------- reference, block by block


def reference_aggd(x):
    shapes = np.arange(0.2, 10.0005, 0.001)
    ratios = gamma(2 / shapes) ** 2 / (gamma(1 / shapes) * gamma(3 / shapes))
    left, right = np.sqrt((x[x < 0] ** 2).mean()), np.sqrt((x[x > 0] ** 2).mean())
    g = left / right
    r = np.abs(x).mean() ** 2 / (x**2).mean() * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
    shape = shapes[np.argmin((ratios - r) ** 2)]
    spread = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * spread, right * spread


def reference_features(y):
    grid = np.arange(-3, 4)
    window = np.exp(-(grid[:, None] ** 2 + grid[None] ** 2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    rows, columns = y.shape[0] // 96, y.shape[1] // 96
    y = y[: rows * 96, : columns * 96]
    scales, sharpness = [], []
    for scale in (1, 2):
        mean = correlate(y, window, mode="nearest")
        deviation = np.sqrt(np.abs(correlate(y * y, window, mode="nearest") - mean * mean))
        mscn = (y - mean) / (deviation + 1)
        mscn[np.abs(mscn) < 1e-9] = 0  # flat neighbourhoods, where rounding depends on the order of sums
        side, features = 96 // scale, []
        for row in range(rows):
            for column in range(columns):
                window_slice = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
                block = mscn[window_slice]
                shape, left, right = reference_aggd(block)
                numbers = [shape, (left + right) / 2]
                for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
                    shape, left, right = reference_aggd(block * np.roll(block, shift, (0, 1)))
                    numbers += [shape, (right - left) * gamma(2 / shape) / gamma(1 / shape), left, right]
                features.append(numbers)
                if scale == 1:
                    sharpness.append(deviation[window_slice].mean())
        scales.append(features)
        # Pillow's bicubic on floats matches MATLAB's imresize except at the edges, which MATLAB mirrors.
        wide = np.pad(y, 16, mode="symmetric").astype(np.float32)
        half = Image.fromarray(wide).resize((wide.shape[1] // 2, wide.shape[0] // 2), Image.Resampling.BICUBIC)
        y = np.asarray(half)[8:-8, 8:-8].astype(np.float64)
    return np.concatenate(scales, axis=1), np.array(sharpness)


def reference_niqe(y, parameters):
    features, _ = reference_features(y)
    difference = parameters.mean - features.mean(axis=0)
    inverse = np.linalg.pinv((parameters.covariance + np.cov(features, rowvar=False)) / 2)
    return np.sqrt(difference @ inverse @ difference)


@pytest.mark.parametrize("y_range", ["studio", "full"])
@pytest.mark.parametrize("name", ["chelsea", "coffee"])
def test_features_and_niqe_match_reference(name, y_range, parameters):
    image = photograph(name)[:, 5:300, 11:450]
    y = luma(image[None], y_range=y_range, rounded=True)[0, 0].numpy()
    expected, expected_sharpness = reference_features(y)
    features, sharpness = niqe_features(image, y_range=y_range)
    assert features.shape == (12, 36)
    np.testing.assert_allclose(sharpness.numpy(), expected_sharpness, rtol=1e-9)
    np.testing.assert_allclose(features.numpy()[:, :18], expected[:, :18], rtol=1e-9, atol=1e-9)
    # Pillow computes in fp32, which may move a shape by one table entry.
    np.testing.assert_allclose(features.numpy()[:, 18:], expected[:, 18:], rtol=2e-3, atol=2e-3)
    assert niqe(image, parameters, y_range=y_range) == pytest.approx(reference_niqe(y, parameters), rel=1e-3)


@pytest.mark.skipif(not OFFICIAL.is_file(), reason="requires NIQE's official parameters (ANDFAST_NIQE_PARAMETERS)")
@pytest.mark.parametrize(
    ("name", "studio", "full"),
    [
        ("chelsea", 2.6255, 2.5721),
        ("coffee", 4.1152, 4.0634),
        ("rocket", 6.9691, 7.0367),
        ("astronaut", 3.0646, 3.0624),
    ],
)
def test_matches_basicsr_with_the_official_parameters(name, studio, full):
    """Values of BasicSR 1.4.2 in fp32 on the same rounded Y."""
    official = NIQE(OFFICIAL)
    assert official(photograph(name)) == pytest.approx(studio, abs=3e-3)
    assert official(photograph(name), y_range="full") == pytest.approx(full, abs=3e-3)


def test_noise_and_blur_increase_niqe(parameters):
    image = photograph("chelsea")
    generator = torch.Generator().manual_seed(0)
    noisy = (image + 40 * torch.randn(image.shape, generator=generator)).clamp(0, 255).byte()
    blurred = torch.nn.functional.avg_pool2d(image.float(), 7, 1, 3).byte()
    clean = niqe(image, parameters)
    assert clean < niqe(noisy, parameters)
    assert clean < niqe(blurred, parameters)


def test_border_and_input_types(parameters):
    image = photograph("coffee")
    assert niqe(image, parameters, crop_border=8) == niqe(image[:, 8:-8, 8:-8], parameters)
    assert niqe(image.double() / 255, parameters) == niqe(image, parameters)
    with pytest.raises(ValueError, match=r"image must have shape \(3, H, W\), was \(1, 3, 400, 600\)"):
        niqe(image[None], parameters)


def test_flat_areas_do_not_depend_on_rounding(parameters):
    """Coefficients of flat areas are exactly 0, not rounding noise with a sign."""
    grey = photograph("coffee").float().mean(dim=0, keepdim=True).round().clamp(60, 140).byte()  # clipped: flat areas
    flat = torch.nn.functional.max_pool2d(grey.float(), 7, 1) + torch.nn.functional.max_pool2d(-grey.float(), 7, 1) == 0
    assert 0.2 < flat.float().mean() < 0.8
    image = grey.expand(3, -1, -1)
    values = [niqe(image + brighter, parameters, y_range="full") for brighter in (0, 1, 17, 90)]
    assert values == pytest.approx([values[0]] * 4, rel=1e-6)  # MSCN removes the mean


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (torch.full((3, 200, 300), 128, dtype=torch.uint8), "flat: 0 of 6 blocks have texture"),
        (torch.zeros(3, 200, 300), "flat: 0 of 6"),
        (torch.rand(3, 95, 400), "too small: 400x95 pixels contain 0 blocks"),
        (torch.rand(3, 100, 120), "too small: 120x100 pixels contain 1 blocks"),
        (torch.rand(3, 1, 1), "too small: 1x1"),
    ],
)
def test_flat_and_tiny_images_are_undefined(image, reason, parameters):
    with pytest.raises(UndefinedNIQEError, match=reason):
        niqe(image, parameters)


# ---------------------------------------------------------------------------------------------- fitting, files


def test_fit_uses_sharp_blocks(parameters):
    assert parameters.mean.shape == (36,)
    blocks = []
    for image in crops():
        features, sharpness = niqe_features(image)
        blocks.append(features[sharpness > 0.75 * sharpness.max()])
    sharp = torch.cat(blocks).numpy()
    assert 36 < len(sharp) < 4 * len(crops())
    np.testing.assert_allclose(parameters.mean, sharp.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(parameters.covariance, np.cov(sharp, rowvar=False), rtol=1e-9, atol=1e-15)


def test_fit_rejects_too_few_blocks():
    with pytest.raises(ValueError, match=r"more than 36 sharp blocks of 96x96 pixels, was \d in 1 photographs"):
        fit_niqe([photograph("chelsea"), torch.rand(3, 50, 50)])
    with pytest.raises(ValueError, match="was 0 in 0 photographs"):
        fit_niqe([])


def test_reads_all_file_formats(parameters, tmp_path):
    write_niqe_parameters(parameters, tmp_path / "ours.npz")
    names = {"mu_prisparam": parameters.mean[None], "cov_prisparam": parameters.covariance}
    savemat(tmp_path / "authors.mat", names)
    np.savez(tmp_path / "basicsr.npz", mu_pris_param=parameters.mean[None], cov_pris_param=parameters.covariance)
    for name in ("ours.npz", "authors.mat", "basicsr.npz"):
        read = read_niqe_parameters(tmp_path / name)
        assert np.array_equal(read.mean, parameters.mean)
        assert np.array_equal(read.covariance, parameters.covariance)
        assert read.source == name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["authors.mat", "basicsr.npz", "ours.npz"]


def test_rejects_wrong_files(parameters, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.npz does not exist"):
        read_niqe_parameters(tmp_path / "gone.npz")
    (tmp_path / "model.pth").touch()
    with pytest.raises(ValueError, match=r"must end in \.npz or \.mat, was '\.pth'"):
        read_niqe_parameters(tmp_path / "model.pth")
    bad = {
        "other": {"weights": np.zeros(3)},
        "shape": {"mu_pris_param": np.zeros(18), "cov_pris_param": np.zeros((18, 18))},
        "nan": {"mu_pris_param": np.full(36, np.nan), "cov_pris_param": np.eye(36)},
        "text": {"mu_pris_param": np.array(["a"] * 36), "cov_pris_param": np.eye(36)},
        "skew": {"mu_pris_param": np.zeros(36), "cov_pris_param": np.triu(np.ones((36, 36)))},
        "pickle": {"mu_pris_param": np.array([{}], dtype=object), "cov_pris_param": np.eye(36)},
    }
    for name, arrays in bad.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(ValueError, match=rf"{name}\.npz") as caught:
            read_niqe_parameters(tmp_path / f"{name}.npz")
        assert "\n" not in str(caught.value)
    for name in ("damaged.npz", "damaged.mat"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 no archive")
        with pytest.raises(ValueError, match="cannot be read as NIQE parameters"):
            read_niqe_parameters(tmp_path / name)
    with pytest.raises(ValueError, match=r"written as \.npz"):
        write_niqe_parameters(parameters, tmp_path / "model.mat")


def test_rejects_oversized_files_unread(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mu_pris_param.npy", bytes(50 << 20))
    with pytest.raises(ValueError, match="its arrays must be at most 1048576 bytes, was 52428800"):
        read_niqe_parameters(tmp_path / "bomb.npz")
    (tmp_path / "large.npz").write_bytes(bytes(2 << 20))
    with pytest.raises(ValueError, match="must be at most 1048576 bytes, was 2097152"):
        read_niqe_parameters(tmp_path / "large.npz")


def test_rejects_invalid_parameters():
    with pytest.raises(ValueError, match=r"mean must be float64 of shape \(36,\)"):
        NIQEParameters(np.zeros(36, np.float32), np.eye(36), "here")
