"""The pack: what goes in, what is reused, and that it survives whatever happens while it is written."""

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from andfast.data import decoding, pack, store
from andfast.data.pack import pack_images
from andfast.data.sources import find_images, resolve_source
from andfast.data.store import PackedImages, PackError


def save(path, size=(20, 30), seed=0, **options):
    """Write a picture of noise; return its (H, W, 3) pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def build(sources, output, **options):
    """pack_images in this process, without a bar."""
    settings = {"min_size": 8, "workers": 0, "progress": False} | options
    return pack_images(sources if isinstance(sources, list) else [sources], output, **settings)


def check(output, expected):
    """The pack holds exactly these pictures, {name: pixels}, and nothing else lies in its folder."""
    images = PackedImages(output)
    assert set(images.names) == set(expected)
    for name, pixels in zip(images.names, [images[i] for i in range(len(images))], strict=True):
        np.testing.assert_array_equal(pixels, expected[name])
    index = json.loads((output / "index.json").read_text())
    assert {path.name for path in output.iterdir()} == {"index.json", "pack.lock", *index["shards"]}
    for name, length in index["shards"].items():
        assert (output / name).stat().st_size == length


@pytest.fixture
def photos(tmp_path):
    """Four pictures, nested, two of one file name, one with a name beyond ASCII."""
    folder = tmp_path / "photos"
    pixels = {
        "a.png": save(folder / "a.png", (20, 30), 1),
        "sub/a.png": save(folder / "sub/a.png", (31, 17), 2),
        "sub/deep/b.TIFF": save(folder / "sub/deep/b.TIFF", (16, 16), 3, format="TIFF"),
        "Füße 犬.bmp": save(folder / "Füße 犬.bmp", (9, 40), 4),
    }
    return folder, pixels


@pytest.mark.parametrize("workers", [0, 2])
def test_pack_holds_the_pictures(photos, tmp_path, workers):
    folder, pixels = photos
    report = build(folder, tmp_path / "pack", workers=workers)
    assert (report.packed, report.reused, report.removed, report.skipped) == (4, 0, 0, [])
    assert report.bytes == sum(one.size for one in pixels.values())
    check(tmp_path / "pack", pixels)
    images = PackedImages(tmp_path / "pack")
    assert images.names == sorted(pixels)
    np.testing.assert_array_equal(images.sizes, [pixels[name].shape[:2] for name in images.names])
    assert images[0].dtype == np.uint8
    assert not images[0].flags.writeable
    np.testing.assert_array_equal(images[-1], images[3])
    with pytest.raises(IndexError):
        images[4]


def test_workers_do_not_change_a_byte(photos, tmp_path):
    for workers in (0, 1, 3):
        build(photos[0], tmp_path / str(workers), workers=workers)
    for name in ("index.json", "pixels-0000.bin"):
        assert len({(tmp_path / str(workers) / name).read_bytes() for workers in (0, 1, 3)}) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_unusable_files_are_named_and_the_run_goes_on(photos, tmp_path, workers):
    folder, pixels = photos
    (folder / "words.png").write_text("These are words.")
    (folder / "empty.jpg").touch()
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:700])
    save(folder / "small.png", (7, 30))
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "notes.txt").write_text("not a picture, not meant to be one")
    (folder / "._a.png").write_text("what macOS leaves")
    report = build(folder, tmp_path / "pack", workers=workers)
    reasons = dict(report.skipped)
    assert list(reasons) == ["cut.png", "empty.jpg", "gone.png", "small.png", "words.png"]
    assert "truncated" in reasons["cut.png"]
    assert reasons["empty.jpg"] == "an empty file"
    assert reasons["gone.png"] == "No such file or directory"
    assert reasons["small.png"] == "30x7 pixels, smaller than the minimum of 8"
    assert reasons["words.png"].startswith("no PNG")
    assert report.packed == 4
    check(tmp_path / "pack", pixels)
    assert "skipped cut.png: truncated" in str(report)


def test_nothing_usable_is_an_error_that_names_the_sources(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build(tmp_path / "nowhere", tmp_path / "pack")
    (tmp_path / "one").mkdir()
    with pytest.raises(ValueError, match=r"no picture files: .*one"):
        build(tmp_path / "one", tmp_path / "pack")
    (tmp_path / "one" / "a.png").write_text("words")
    with pytest.raises(ValueError, match=r"no usable pictures: .*one; a\.png: no PNG"):
        build(tmp_path / "one", tmp_path / "pack")
    with pytest.raises(FileNotFoundError, match="holds no pack"):
        PackedImages(tmp_path / "pack")


def test_nothing_usable_leaves_the_old_pack(photos, tmp_path):
    folder, pixels = photos
    build(folder, tmp_path / "pack")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").touch()
    with pytest.raises(ValueError, match="no usable pictures"):
        build(tmp_path / "bad", tmp_path / "pack")
    check(tmp_path / "pack", pixels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_size": 0}, "min_size must be an integer of at least 1, was 0"),
        ({"workers": -1}, "workers must be an integer of at least 0, was -1"),
        ({"include": "*.png"}, "include must be a list of patterns"),
        ({"exclude": "*.png"}, "exclude must be a list of patterns"),
        ({"sources": "photos"}, "sources must be a list"),
        ({"sources": []}, "sources must be a list"),
    ],
)
def test_wrong_arguments_are_named(photos, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        pack_images(**{"sources": [photos[0]], "output": tmp_path / "pack", "min_size": 8} | options)


def test_second_run_decodes_nothing_and_writes_nothing(photos, tmp_path, monkeypatch):
    folder, pixels = photos
    build(folder, tmp_path / "pack")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "pack").iterdir()}
    monkeypatch.setattr(pack, "decode_files", lambda paths, **_: iter_of_none(paths))
    report = build(folder, tmp_path / "pack")
    assert (report.packed, report.reused, report.removed) == (0, 4, 0)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "pack").iterdir()} == before
    check(tmp_path / "pack", pixels)


def iter_of_none(paths):
    assert not paths
    yield from ()


def test_changed_new_and_removed_files(photos, tmp_path):
    folder, pixels = photos
    build(folder, tmp_path / "pack")
    pixels["a.png"] = save(folder / "a.png", (25, 25), 11)
    pixels["new.png"] = save(folder / "new.png", (40, 41), 12)
    del pixels["sub/a.png"]
    (folder / "sub/a.png").unlink()
    report = build(folder, tmp_path / "pack")
    assert (report.packed, report.reused, report.removed) == (2, 2, 1)
    check(tmp_path / "pack", pixels)
    total = sum(one.size for one in pixels.values())
    assert sum(path.stat().st_size for path in (tmp_path / "pack").glob("pixels-*")) == total  # space is reclaimed


def test_a_file_touched_or_replaced_at_equal_size_is_packed_again(tmp_path):
    save(tmp_path / "photos/a.bmp", seed=1)
    build(tmp_path / "photos", tmp_path / "pack")
    pixels = save(tmp_path / "photos/a.bmp", seed=2)
    os.utime(tmp_path / "photos/a.bmp", ns=(0, 12345))
    assert build(tmp_path / "photos", tmp_path / "pack").packed == 1
    check(tmp_path / "pack", {"a.bmp": pixels})


def test_space_comes_back_without_anything_new(photos, tmp_path):
    folder, pixels = photos
    build(folder, tmp_path / "pack")
    for name in list(pixels)[:3]:
        (folder / name).unlink()
        del pixels[name]
    assert build(folder, tmp_path / "pack").removed == 3
    check(tmp_path / "pack", pixels)
    assert sum(path.stat().st_size for path in (tmp_path / "pack").glob("pixels-*")) == 9 * 40 * 3


def test_filters_and_minimum_decide_what_is_in_the_pack(photos, tmp_path):
    folder = photos[0]
    build(folder, tmp_path / "pack", include=["*.png"])
    assert PackedImages(tmp_path / "pack").names == ["a.png", "sub/a.png"]
    build(folder, tmp_path / "pack", exclude=["sub/*", "F*"])
    assert PackedImages(tmp_path / "pack").names == ["a.png"]
    build(folder, tmp_path / "pack", include=["sub/*"], exclude=["b.*"])
    assert PackedImages(tmp_path / "pack").names == ["sub/a.png"]
    build(folder, tmp_path / "pack")
    report = build(folder, tmp_path / "pack", min_size=17)
    assert (report.reused, [name for name, _ in report.skipped]) == (2, ["Füße 犬.bmp", "sub/deep/b.TIFF"])
    with pytest.raises(ValueError, match=r"no picture files: .*; include \*\.gif"):
        build(folder, tmp_path / "pack", include=["*.gif"])


def test_sources_of_every_kind(photos, tmp_path):
    folder, _ = photos
    single = tmp_path / "elsewhere" / "scan.dat"
    save(single, format="PNG", seed=9)
    other = tmp_path / "other"
    save(other / "a.png", seed=8)
    (other / "circle").symlink_to(other)
    (other / "linked").symlink_to(folder / "sub")
    files = find_images([folder, single, other, folder / "sub"])
    names = [file.name for file in files]
    # Two files are a.png relative to their sources: their real paths tell them apart. Nothing counts twice.
    assert names == [
        "Füße 犬.bmp",
        str(folder / "a.png"),
        "sub/a.png",
        "sub/deep/b.TIFF",
        "scan.dat",
        str(other / "a.png"),
    ]
    assert build([folder, single, other], tmp_path / "pack").packed == 6


def test_package_sources():
    files = find_images(["package:skimage/data"], include=["astronaut.png", "chelsea.png"])
    assert [file.name for file in files] == ["astronaut.png", "chelsea.png"]
    assert resolve_source("package:skimage/data/coffee.png").is_file()
    with pytest.raises(FileNotFoundError, match="'no_such_package', which is not installed"):
        resolve_source("package:no_such_package/data")
    with pytest.raises(FileNotFoundError, match="no folder or file 'nowhere'"):
        resolve_source("package:skimage/nowhere")
    for wrong in ("package:", "package:skimage.data", "package:/etc"):
        with pytest.raises(ValueError, match="top-level package"):
            resolve_source(wrong)


def test_package_sources_do_not_import_the_package():
    code = (
        "import sys; from andfast.data.sources import resolve_source; resolve_source('package:skimage/data');"
        "assert 'skimage' not in sys.modules; import andfast.data.pack; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_real_photographs(tmp_path):
    names = ["astronaut.png", "coffee.png", "rocket.jpg"]
    report = build(["package:skimage/data"], tmp_path / "pack", include=names, min_size=256, workers=2)
    assert report.packed == 3
    images = PackedImages(tmp_path / "pack")
    assert images.names == names
    folder = resolve_source("package:skimage/data")
    for i, name in enumerate(names):
        np.testing.assert_array_equal(images[i], np.asarray(Image.open(folder / name).convert("RGB")))


def test_many_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_BYTES", 5000)
    pixels = {f"{i}.png": save(tmp_path / f"photos/{i}.png", (20, 30), i) for i in range(9)}  # 1800 bytes each
    build(tmp_path / "photos", tmp_path / "pack")
    assert len(list((tmp_path / "pack").glob("pixels-*"))) == 5
    check(tmp_path / "pack", pixels)
    (tmp_path / "photos/3.png").unlink()
    del pixels["3.png"]
    pixels["8.png"] = save(tmp_path / "photos/8.png", (41, 41), 8)  # more than a shard: one of its own
    build(tmp_path / "photos", tmp_path / "pack")
    check(tmp_path / "pack", pixels)


def test_unpickled_pack_reads_the_same(photos, tmp_path):
    build(photos[0], tmp_path / "pack")
    images = PackedImages(tmp_path / "pack")
    data = pickle.dumps(images)
    assert len(data) < 2000  # the map is reopened, not copied
    again = pickle.loads(data)
    assert again.names == images.names
    np.testing.assert_array_equal(again[2], images[2])


def test_open_pack_outlives_its_replacement(photos, tmp_path):
    folder, pixels = photos
    build(folder, tmp_path / "pack")
    images = PackedImages(tmp_path / "pack")
    for seed, name in enumerate(pixels):
        save(folder / name, (50, 50), 20 + seed)
    build(folder, tmp_path / "pack")
    for i, name in enumerate(images.names):
        np.testing.assert_array_equal(images[i], pixels[name])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "index.json").write_text("{"), "damaged"),
        (
            lambda p: (p / "index.json").write_text('{"format": "andfast-pack", "version": 1}'),
            "damaged: KeyError",
        ),
        (lambda p: (p / "index.json").write_text('{"format": "andfast-pack", "version": 99}'), "version 99"),
        (lambda p: (p / "index.json").write_text("[1]"), "not the index"),
        (lambda p: os.truncate(p / "pixels-0000.bin", 100), "has 100 bytes instead of"),
        (lambda p: (p / "pixels-0000.bin").unlink(), "is missing"),
    ],
)
def test_damaged_pack_does_not_load_and_is_made_anew(photos, tmp_path, damage, message):
    folder, pixels = photos
    build(folder, tmp_path / "pack")
    damage(tmp_path / "pack")
    with pytest.raises(PackError, match=message):
        PackedImages(tmp_path / "pack")
    assert build(folder, tmp_path / "pack").packed == 4
    check(tmp_path / "pack", pixels)


def test_new_decoder_version_packs_anew(photos, tmp_path, monkeypatch):
    folder, pixels = photos
    build(folder, tmp_path / "pack")
    monkeypatch.setattr(pack, "DECODER_VERSION", 999)
    assert build(folder, tmp_path / "pack").packed == 4
    check(tmp_path / "pack", pixels)


def test_folder_of_other_things_is_refused_untouched(photos, tmp_path):
    output = tmp_path / "mine"
    output.mkdir()
    (output / "index.json").write_text("[]")
    (output / "pixels-0000.bin").write_text("mine")
    with pytest.raises(ValueError, match=r"output must be a pack or an empty folder, .*index\.json"):
        build(photos[0], output)
    assert sorted(path.name for path in output.iterdir()) == ["index.json", "pixels-0000.bin"]
    assert (output / "pixels-0000.bin").read_text() == "mine"


SLOW_RUN = """
import sys, time
from pathlib import Path
from andfast.data import pack, store
store.SHARD_BYTES = 4000
real = store.ShardWriter.add
def add(self, pixels):
    place = real(self, pixels)
    if self._file is not None:
        self._file.flush()
    time.sleep(0.05)
    return place
store.ShardWriter.add = add
print("begin", flush=True)
pack.pack_images([sys.argv[1]], sys.argv[2], min_size=8, workers=int(sys.argv[3]), progress=False)
"""


def start_slow_run(folder, output, workers=0):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, str(folder), str(output), str(workers)], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"begin\n"
    return process


def wait_for(process, output, finished):
    """Until the first shard is begun and so many are finished and noted."""

    def noted():
        progress = output / "progress.json"
        return len(json.loads(progress.read_text())["images"]) // 2 if progress.exists() else 0

    count = len(list(output.glob("pixels-*")))
    while len(list(output.glob("pixels-*"))) == count or noted() < finished:
        assert process.poll() is None
        time.sleep(0.005)


@pytest.mark.parametrize(("finished", "workers"), [(0, 0), (1, 2), (4, 0)])
def test_kill_in_the_middle_leaves_the_old_pack_and_the_rest_is_done_later(tmp_path, monkeypatch, finished, workers):
    monkeypatch.setattr(store, "SHARD_BYTES", 4000)
    folder, output = tmp_path / "photos", tmp_path / "pack"
    old = {"0.png": save(folder / "0.png", seed=100)}
    build(folder, output)
    new = old | {f"{i}.png": save(folder / f"{i}.png", seed=i) for i in range(1, 20)}
    with start_slow_run(folder, output, workers) as process:
        wait_for(process, output, finished)
        process.send_signal(signal.SIGKILL)
    images = PackedImages(output)
    assert images.names == ["0.png"]
    np.testing.assert_array_equal(images[0], old["0.png"])
    report = build(folder, output)
    assert report.packed + report.reused == 20
    assert report.reused >= 1 + 2 * finished  # two pictures a shard: those that were finished are kept
    assert report.packed >= 1
    check(output, new)


def test_kill_before_there_is_a_pack(tmp_path):
    folder, output = tmp_path / "photos", tmp_path / "pack"
    pixels = {f"{i}.png": save(folder / f"{i}.png", seed=i) for i in range(20)}
    with start_slow_run(folder, output) as process:
        wait_for(process, output, 1)
        process.kill()
    with pytest.raises(FileNotFoundError, match="holds no pack"):
        PackedImages(output)
    assert build(folder, output).packed < 20
    check(output, pixels)


@pytest.mark.parametrize("when", ["os.replace", "os.fsync"])
def test_failure_while_the_index_is_written_leaves_the_old_pack(photos, tmp_path, monkeypatch, when):
    folder, pixels = photos
    build(folder, tmp_path / "pack")
    save(folder / "new.png", seed=30)

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(when, fail)
        with pytest.raises(OSError, match=r"the disk is full, the pack .* is as it was"):
            build(folder, tmp_path / "pack")
    check(tmp_path / "pack", pixels)


@pytest.mark.parametrize("limit", [1000, 9000])
def test_full_disk_is_said_and_leaves_nothing(photos, tmp_path, limit):
    # A limit on the size of files fails writes as a full disk does: in a shard, or when it is flushed.
    folder, pixels = photos
    build(folder, tmp_path / "pack", include=["b.TIFF"])
    save(folder / "big.png", (60, 60), 5)
    code = (
        f"import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "from andfast.data.pack import pack_images;"
        f"pack_images([{str(folder)!r}], {str(tmp_path / 'pack')!r}, min_size=8, workers=0, progress=False)"
    )
    run = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False)
    assert run.returncode == 1
    assert "the disk is full, the pack" in run.stderr.splitlines()[-1]
    check(tmp_path / "pack", {"sub/deep/b.TIFF": pixels["sub/deep/b.TIFF"]})


def test_interrupt_leaves_no_partial_file(photos, tmp_path, monkeypatch):
    folder, pixels = photos
    build(folder, tmp_path / "pack", include=["b.TIFF"])

    def interrupted(paths, **options):
        for count, result in enumerate(decoding.decode_files(paths, **options)):
            if count == 2:
                raise KeyboardInterrupt
            yield result

    with monkeypatch.context() as patch:
        patch.setattr(pack, "decode_files", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(folder, tmp_path / "pack", workers=2)
    check(tmp_path / "pack", {"sub/deep/b.TIFF": pixels["sub/deep/b.TIFF"]})


def test_concurrent_runs_wait_for_one_another(tmp_path):
    folder, output = tmp_path / "photos", tmp_path / "pack"
    pixels = {f"{i}.png": save(folder / f"{i}.png", seed=i) for i in range(12)}
    runs = [start_slow_run(folder, output) for _ in range(3)]
    for run in runs:
        with run:
            assert run.wait() == 0
    check(output, pixels)


def test_a_decoder_that_dies_costs_one_file(tmp_path, monkeypatch):
    program = tmp_path / "images.py"
    real = Path(decoding.images.__file__)
    program.write_text(real.read_text().replace(
        "def _decode(path: str | Path, min_size: int) -> NDArray[np.uint8]:\n",
        "def _decode(path: str | Path, min_size: int) -> NDArray[np.uint8]:\n"
        "    if path.endswith('evil.png'):\n"
        "        print('last words', file=sys.stderr, flush=True)\n"
        "        os.abort()\n",
    ))  # fmt: skip
    folder = tmp_path / "photos"
    pixels = {f"{i}.png": save(folder / f"{i}.png", seed=i) for i in range(6)}
    save(folder / "evil.png")
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    monkeypatch.setattr(decoding.images, "__file__", str(program))
    try:
        report = build(folder, tmp_path / "pack", workers=2)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    assert report.skipped == [("evil.png", "the decoder was killed by SIGABRT: last words")]
    check(tmp_path / "pack", pixels)


def test_a_decoder_that_does_not_start_is_an_error(photos, tmp_path, monkeypatch):
    program = tmp_path / "images.py"
    program.write_text("raise SystemExit('no Pillow here')")
    monkeypatch.setattr(decoding.images, "__file__", str(program))
    with pytest.raises(RuntimeError, match="ended with exit code 1: no Pillow here"):
        build(photos[0], tmp_path / "pack", workers=2)


def test_names_that_are_not_text_are_packed_and_printable(tmp_path):
    folder = tmp_path / "photos"
    pixels = save(folder / "a.png")
    name = os.fsdecode(b"bad\xff\nname.png")
    (folder / "a.png").rename(folder / name)
    (folder / os.fsdecode(b"\xfe.png")).touch()
    report = build(folder, tmp_path / "pack", workers=1)
    check(tmp_path / "pack", {name: pixels})
    assert str(report).encode().endswith(b"skipped \\udcfe.png: an empty file")
