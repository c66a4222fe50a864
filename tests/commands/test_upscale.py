"""The upscale command: what is kept of a file, folders and globs, atomic results, memory, invalid arguments."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps
from skimage import data
from torchvision.io import ImageReadMode, decode_png, read_file

from andfast.inference.channels import ChannelsRestorer
from andfast.inference.models import Restorer, load_restorer
from andfast.inference.padding import Sides
from andfast.inference.reading import read_image
from andfast.inference.writers import check_writable
from andfast.upscale import main

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def photograph(height: int = 40, width: int = 50) -> NDArray[np.uint8]:
    return np.ascontiguousarray(data.astronaut()[60 : 60 + height, 150 : 150 + width])


def bicubic(samples: NDArray[Any], scale: int = 2) -> NDArray[Any]:
    """The expected result of --weights bicubic for (H, W, C) samples without alpha."""
    top = np.iinfo(samples.dtype).max
    x = torch.from_numpy(samples.astype(np.float32) / np.float32(top)).permute(2, 0, 1)[None]
    out = ChannelsRestorer(load_restorer("bicubic", scale=scale)).restore(x)[0].clamp(0, 1)
    return (out.permute(1, 2, 0) * top + 0.5).numpy().astype(samples.dtype)


def upscale(*arguments: object, scale: int = 2) -> int:
    return main([*map(str, arguments), "--weights", "bicubic", "--scale", str(scale), "--quiet", "--device", "cpu"])


def read(path: Path) -> NDArray[Any]:
    """Samples of a file, (H, W, C), by torchvision and tifffile, as Pillow reads no 16-bit RGB."""
    if path.suffix == ".png":
        return decode_png(read_file(str(path)), mode=ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    samples = tifffile.imread(path) if path.suffix == ".tif" else np.asarray(Image.open(path))
    return samples if samples.ndim == 3 else samples[..., None]


# ------------------------------------------------------------------------------------------------- what is kept


def save_8(path: Path, samples: NDArray[Any]) -> None:
    Image.fromarray(samples if samples.shape[2] > 1 else samples[..., 0]).save(path)


def save_16(path: Path, samples: NDArray[Any]) -> None:
    if path.suffix == ".tif":
        if samples.shape[2] == 2:
            pytest.skip("Pillow reads no such TIFF")
        extra = ["unassalpha"] if samples.shape[2] == 4 else None
        photometric = "rgb" if samples.shape[2] > 2 else "minisblack"
        tifffile.imwrite(path, samples.squeeze(), photometric=photometric, extrasamples=extra)
    else:  # test_writers.py checks these PNGs against torchvision
        from andfast.inference.png import PngWriter  # noqa: PLC0415

        with path.open("wb") as file:
            writer = PngWriter(file, samples.shape[1], samples.shape[0], channels=samples.shape[2], bits=16)
            writer.write(samples)
            writer.close()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("save", "depth"), [(save_8, np.uint8), (save_16, np.uint16)])
def test_depth_and_channels_are_kept(
    save: Callable[[Path, NDArray[Any]], None], depth: type, channels: int, suffix: str, tmp_path: Path
) -> None:
    samples = np.dstack([photograph(), np.arange(40 * 50).reshape(40, 50) % 255 + 1])[..., 4 - channels :]
    samples = samples.astype(np.uint8) if depth is np.uint8 else (samples * 257 - samples % 13).astype(depth)
    if channels == 1:
        samples = samples[..., :1]
    file = tmp_path / f"picture{suffix}"
    save(file, np.ascontiguousarray(samples))
    assert upscale(file, tmp_path / "out", "--tile", 0) == 0
    result = read(tmp_path / "out" / file.name)
    assert result.dtype == depth
    assert np.array_equal(result, bicubic(samples))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(photograph()).save(tmp_path / "a.png", exif=exif)
    assert upscale(tmp_path / "a.png", tmp_path / "b.png") == 0
    upright = read(tmp_path / "b.png")
    assert upright.shape == ((100, 80, 3) if orientation > 4 else (80, 100, 3))
    with Image.open(tmp_path / "a.png") as before, Image.open(tmp_path / "b.png") as after:
        assert np.array_equal(upright, bicubic(np.asarray(ImageOps.exif_transpose(before))))
        assert 274 not in after.getexif()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_profile_and_exif_are_kept(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exif = Image.Exif()
    exif[271], exif[274], exif[306] = "Maker", 1, "2020:01:02 03:04:05"
    exif[34665] = {33437: 2.8, 40962: 50, 37500: b"secret"}
    options = {} if suffix == ".tif" else {"exif": exif}
    Image.fromarray(photograph()).save(tmp_path / f"a{suffix}", icc_profile=SRGB, quality=95, **options)
    assert upscale(tmp_path / f"a{suffix}", tmp_path / f"b{suffix}") == 0
    with Image.open(tmp_path / f"b{suffix}") as out:
        assert out.info["icc_profile"] == SRGB
        if suffix != ".tif":
            kept = out.getexif()
            assert (kept[271], kept[306]) == ("Maker", "2020:01:02 03:04:05")
            assert dict(kept.get_ifd(34665)) == {33437: pytest.approx(2.8)}
    note = "" if suffix == ".tif" else f"{tmp_path}/a{suffix}: its EXIF tags MakerNote are not kept\n"
    assert capsys.readouterr().err == note


def test_losses_are_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(photograph()).convert("CMYK").save(tmp_path / "cmyk.tif", icc_profile=SRGB[:40])
    save_16(tmp_path / "deep.png", photograph().astype(np.uint16) * 257)
    assert upscale(tmp_path / "cmyk.tif", tmp_path / "deep.png", tmp_path / "out", "--format", "webp") == 0
    err = capsys.readouterr().err
    assert "cmyk.tif: CMYK is converted to RGB" in err
    assert "cmyk.tif: its ICC profile is damaged" in err
    assert "deep.png: 16 bits are reduced to 8, the maximum of WEBP" in err


def test_palettes_and_bilevel(tmp_path: Path) -> None:
    picture = Image.fromarray(photograph())
    picture.quantize(16).save(tmp_path / "palette.png")
    picture.convert("1").save(tmp_path / "bilevel.png")
    assert upscale(tmp_path / "*.png", tmp_path / "out") == 0
    assert [read(tmp_path / "out" / f"{name}.png").shape[2] for name in ("palette", "bilevel")] == [3, 1]


def test_hidden_colors_do_not_bleed_into_edges() -> None:
    x = torch.zeros(1, 4, 24, 24)
    x[:, :, 8:16, 8:16] = torch.tensor([0.9, 0.5, 0.2, 1.0])[:, None, None]
    out = ChannelsRestorer(load_restorer("bicubic", scale=4)).restore(x)
    visible = out[0, 3] > 0
    assert visible.sum() > 32 * 32
    for channel, value in enumerate((0.9, 0.5, 0.2)):
        assert (out[0, channel][visible] - value).abs().max() < 1e-4
    assert out[0, 3].min() >= 0
    assert out[0, 3].max() <= 1


# ---------------------------------------------------------------------------------------------- files and folders


def test_folders_are_mirrored(tmp_path: Path) -> None:
    for name in ("a.png", "sub/deep/b.jpg", "sub/c.bmp", "d.JPEG"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(8, 9)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    out = tmp_path / "in" / "out"  # inside the input: a second run must not restore results
    for _ in range(2):
        assert upscale(tmp_path / "in", out, "--overwrite") == 0
        result = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
        assert result == {"a.png", "sub/deep/b.jpg", "sub/c.png", "d.JPEG"}
    assert read(out / "sub" / "c.png").shape == (16, 18, 3)


def test_globs_keep_subfolders(tmp_path: Path) -> None:
    for name in ("x/a.png", "x/y/b.png", "x/y/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(8, 9)).save(tmp_path / name)
    assert upscale(tmp_path / "x" / "**" / "*.png", tmp_path / "out", "--format", "webp") == 0
    assert {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")} == {
        "a.webp",
        "y/b.webp",
    }


def test_unreadable_image_is_reported_and_others_continue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(photograph(8, 9)).save(tmp_path / "a.png")
    (tmp_path / "b\x1b[31m\n.png").write_bytes(b"no picture")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "c.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(photograph(8, 9)).save(tmp_path / "d.png")
    assert upscale(tmp_path, tmp_path / "out") == 1
    out, err = capsys.readouterr()
    assert "2 of 4 images restored by bicubic x2 on cpu" in out
    assert r"b\x1b[31m\n.png: not restored: not a PNG" in err
    assert "c.png: not restored: truncated or damaged" in err
    assert err.splitlines()[-1] == "error: 2 of 4 images could not be restored"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "d.png"]


def test_overwrite_and_skip_existing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(photograph(8, 9)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("precious")
    assert upscale(tmp_path / "a.png", tmp_path / "b.png") == 1
    assert "b.png already exists" in capsys.readouterr().err
    assert upscale(tmp_path / "a.png", tmp_path / "b.png", "--skip-existing") == 0
    assert "0 of 1 images restored by bicubic x2 on cpu, 1 existing results skipped" in capsys.readouterr().out
    assert (tmp_path / "b.png").read_text() == "precious"
    assert upscale(tmp_path / "a.png", tmp_path / "b.png", "--overwrite") == 0
    assert read(tmp_path / "b.png").shape == (16, 18, 3)
    assert upscale(tmp_path / "a.png", tmp_path / "a.png", "--overwrite") == 2
    assert "output must be a different file than the input" in capsys.readouterr().err
    assert upscale(tmp_path, tmp_path, "--overwrite") == 2
    assert "output must be a different folder than the input" in capsys.readouterr().err


def test_rejects_colliding_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "a.jpg"):
        Image.fromarray(photograph(8, 9)).save(tmp_path / name)
    assert upscale(tmp_path, tmp_path / "out", "--format", "png") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: inputs must have different targets, ")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert upscale(tmp_path, tmp_path / "out") == 0


def test_results_stay_in_the_output_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    Image.fromarray(photograph(8, 9)).save(tmp_path / "in" / "sub" / "a.png")
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    assert upscale(tmp_path / "in", tmp_path / "out") == 1
    assert "leads out of the output folder" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    Image.fromarray(photograph(8, 9)).save(tmp_path / "other" / "a.png")
    assert upscale(f"{tmp_path}/in/s*/../../other/a.png", tmp_path / "out" / "deep") == 1
    assert "leads out of the output folder" in capsys.readouterr().err
    assert list((tmp_path / "elsewhere").iterdir()) == []
    # Links at the paths of a result and of its temporary file are replaced, not followed.
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a.png").symlink_to(tmp_path / "precious")
    (tmp_path / "links" / ".tmp-a.png").symlink_to(tmp_path / "precious")
    assert upscale(tmp_path / "in" / "sub", tmp_path / "links", "--overwrite") == 0
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "links" / "a.png").is_symlink()


def test_interrupt_leaves_no_partial_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(photograph(200, 20)).save(tmp_path / "a.png")
    restore = ChannelsRestorer.restore
    seen: list[str] = []

    def interrupted(self: ChannelsRestorer, lr: torch.Tensor, sides: Sides) -> torch.Tensor:
        seen.extend(path.name for path in (tmp_path / "out").iterdir())
        if len(seen) > 3:
            raise KeyboardInterrupt
        return restore(self, lr, sides)

    monkeypatch.setattr(ChannelsRestorer, "restore", interrupted)
    assert upscale(tmp_path / "a.png", tmp_path / "out", "--tile", 32, "--overlap", 8) == 130
    assert seen
    assert set(seen) == {".tmp-a.png"}
    assert list((tmp_path / "out").iterdir()) == []
    assert "no file is incomplete" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ tiles and memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_falls_back_to_smaller_tiles(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = photograph(90, 120)
    Image.fromarray(picture).save(tmp_path / "a.png")
    restore = Restorer.restore

    def limited(self: Restorer, lr: torch.Tensor, sides: Sides) -> torch.Tensor:
        if lr.shape[2] > 40:
            raise error
        return restore(self, lr, sides)

    monkeypatch.setattr(Restorer, "restore", limited)
    assert upscale(tmp_path / "a.png", tmp_path / "out", "--tile", 0, "--overlap", 8) == 0
    err = capsys.readouterr().err
    assert "a.png: not enough memory for tiles of 120, continuing with 60" in err
    assert "not enough memory for tiles of 60, continuing with 30" in err
    monkeypatch.undo()
    difference = read(tmp_path / "out" / "a.png").astype(int) - bicubic(picture)
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 0.001


def test_out_of_memory_for_every_tile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: Restorer, lr: torch.Tensor, sides: Sides) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Restorer, "restore", never)
    Image.fromarray(photograph()).save(tmp_path / "a.png")
    assert upscale(tmp_path / "a.png", tmp_path / "out") == 1
    assert "not enough memory even for tiles of" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_rejects_results_that_are_not_finite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Restorer, "restore", lambda _, lr, sides: torch.full((1, 3, *(2 * n for n in lr.shape[2:])), torch.nan)
    )
    Image.fromarray(photograph()).save(tmp_path / "a.png")
    assert upscale(tmp_path / "a.png", tmp_path / "out") == 1
    assert "values that are not finite" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_large_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(photograph()).save(tmp_path / "a.png")
    assert upscale(tmp_path / "a.png", tmp_path / "out", "--max-pixels", 1999) == 1
    assert "a.png: not restored: too many pixels" in capsys.readouterr().err
    assert upscale(tmp_path / "a.png", tmp_path / "out", "--max-pixels", 2000) == 0
    # Checked before restoring: what the format cannot hold.
    assert upscale(tmp_path / "a.png", tmp_path / "out", "--format", "jpg", scale=1400) == 1
    assert "JPEG must have at most 65500 pixels per side, the result has 70000x56000" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"at most 268,435,456 pixels .* write a PNG or TIFF"):
        check_writable("JPEG", 20000, 20000, 3)
    check_writable("PNG", 1 << 20, 1 << 20, 4)


def test_jpeg_rejects_alpha(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_8(tmp_path / "a.png", np.dstack([photograph(), np.full((40, 50), 9, np.uint8)]))
    assert upscale(tmp_path / "a.png", tmp_path / "a.jpg") == 1
    assert "JPEG has no transparency" in capsys.readouterr().err
    assert not (tmp_path / "a.jpg").exists()


# ------------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["{in}", "{out}", "--tile", "40"],
            "tile must be at least 64 with an overlap of 32, or 0 for no tiles, was 40",
        ),
        (["{in}", "{out}", "--quality", "101"], "quality must be at most 100, was 101"),
        (["{in}", "{out}", "--quality", "0"], "quality must be at least 1, was 0"),
        (["{in}", "{out}", "--device", "tpu"], "device must be auto, cpu, cuda, cuda:N or mps, was 'tpu'"),
        (["{in}/none.png", "{out}"], "input must be an existing file or folder or a glob pattern, was "),
        (["{in}/*.jpg", "{out}"], "must match images, it matches none"),
        (["{empty}", "{out}"], "input must contain images"),
        (["{in}/a.png", "{out}.gif"], "out.gif: suffix must be one of .png"),
        (["{in}", "{out}.png"], "output must be a folder unless the input is a single file"),
        (["{in}", "{in}/a.png"], "output must be a folder"),
        (["{in}", "{out}", "--weights", "{in}/none.pth"], "none.pth: no such file of weights"),
        (["{in}", "{out}", "--weights", "{in}/a.png"], "a.png: weights must end in .safetensors"),
        (["{in}", "{out}", "--weights", "bicubic"], "scale must be given for bicubic"),
    ],
)
def test_rejects_invalid_arguments(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {"in": tmp_path / "in", "out": tmp_path / "out", "empty": tmp_path / "empty"}
    folders["in"].mkdir()
    folders["empty"].mkdir()
    Image.fromarray(photograph(8, 9)).save(folders["in"] / "a.png")
    command = [argument.format(**folders) for argument in arguments]
    if "--weights" not in command:
        command += ["--weights", "bicubic", "--scale", "2"]
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not folders["out"].exists()


def test_names_of_any_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        Image.fromarray(photograph(8, 9)).save(tmp_path / name)
    except OSError:
        pytest.skip("this file system wants names in UTF-8")
    assert upscale(tmp_path / name, tmp_path / "out") == 0
    assert read_image(tmp_path / "out" / name).samples.shape == (16, 18, 3)
