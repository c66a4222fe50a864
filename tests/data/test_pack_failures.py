"""Packing under failures: damaged packs, kills, full disks, interrupts, concurrent runs, crashed decoders."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from packs import build, check_pack, save_noise

from andfast.data import decoding, pack_update, store
from andfast.data.store import PackedImages, PackError


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "index.json").write_text("{"), "damaged"),
        (
            lambda p: (p / "index.json").write_text('{"format": "andfast-pack", "version": 1}'),
            "damaged: KeyError",
        ),
        (
            lambda p: (p / "index.json").write_text('{"format": "andfast-pack", "version": 99}'),
            "format version 1 or 2, was 99",
        ),
        (lambda p: (p / "index.json").write_text("[1]"), "not the index"),
        (lambda p: os.truncate(p / "pixels-0000.bin", 100), "must have 5229 bytes, has 100"),
        (lambda p: (p / "pixels-0000.bin").unlink(), "is missing"),
    ],
)
def test_damaged_pack_raises_and_is_rebuilt(photos, tmp_path, damage, message):
    folder, pixels = photos
    build(folder, tmp_path / "pack")
    damage(tmp_path / "pack")
    with pytest.raises(PackError, match=message):
        PackedImages(tmp_path / "pack")
    assert build(folder, tmp_path / "pack").packed == 4
    check_pack(tmp_path / "pack", pixels)


def test_new_decoder_version_rebuilds_pack(photos, tmp_path, monkeypatch):
    folder, pixels = photos
    build(folder, tmp_path / "pack")
    monkeypatch.setattr(pack_update, "DECODER_VERSION", 999)
    assert build(folder, tmp_path / "pack").packed == 4
    check_pack(tmp_path / "pack", pixels)


def test_rejects_folder_with_other_files(photos, tmp_path):
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
    """Wait until a shard is being written and ``finished`` shards are in progress.json."""

    def recorded():
        progress = output / "progress.json"
        return len(json.loads(progress.read_text())["images"]) // 2 if progress.exists() else 0

    count = len(list(output.glob("pixels-*")))
    while len(list(output.glob("pixels-*"))) == count or recorded() < finished:
        assert process.poll() is None
        time.sleep(0.005)


@pytest.mark.parametrize(("finished", "workers"), [(0, 0), (1, 2), (4, 0)])
def test_kill_keeps_previous_pack_and_finished_shards(tmp_path, monkeypatch, finished, workers):
    monkeypatch.setattr(store, "SHARD_BYTES", 4000)
    folder, output = tmp_path / "photos", tmp_path / "pack"
    old = {"0.png": save_noise(folder / "0.png", seed=100)}
    build(folder, output)
    new = old | {f"{i}.png": save_noise(folder / f"{i}.png", seed=i) for i in range(1, 20)}
    with start_slow_run(folder, output, workers) as process:
        wait_for(process, output, finished)
        process.send_signal(signal.SIGKILL)
    images = PackedImages(output)
    assert images.names == ["0.png"]
    np.testing.assert_array_equal(images[0], old["0.png"])
    report = build(folder, output)
    assert report.packed + report.reused == 20
    assert report.reused >= 1 + 2 * finished  # two images per shard
    assert report.packed >= 1
    check_pack(output, new)


def test_kill_before_first_index(tmp_path):
    folder, output = tmp_path / "photos", tmp_path / "pack"
    pixels = {f"{i}.png": save_noise(folder / f"{i}.png", seed=i) for i in range(20)}
    with start_slow_run(folder, output) as process:
        wait_for(process, output, 1)
        process.kill()
    with pytest.raises(FileNotFoundError, match="holds no pack"):
        PackedImages(output)
    assert build(folder, output).packed < 20
    check_pack(output, pixels)


@pytest.mark.parametrize("when", ["os.replace", "os.fsync"])
def test_failed_index_write_keeps_previous_pack(photos, tmp_path, monkeypatch, when):
    folder, pixels = photos
    build(folder, tmp_path / "pack")
    save_noise(folder / "new.png", seed=30)

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(when, fail)
        with pytest.raises(OSError, match=r"the disk is full, the pack .* is unchanged"):
            build(folder, tmp_path / "pack")
    check_pack(tmp_path / "pack", pixels)


@pytest.mark.parametrize("limit", [1000, 9000])
def test_full_disk_raises_and_leaves_nothing(photos, tmp_path, limit):
    # A file size limit fails writes like a full disk: in a shard, or when it is flushed.
    folder, pixels = photos
    build(folder, tmp_path / "pack", include=["b.TIFF"])
    save_noise(folder / "big.png", (60, 60), 5)
    code = (
        f"import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "from andfast.data.pack import pack_images;"
        f"pack_images([{str(folder)!r}], {str(tmp_path / 'pack')!r}, min_size=8, workers=0, progress=False)"
    )
    run = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False)
    assert run.returncode == 1
    assert "the disk is full, the pack" in run.stderr.splitlines()[-1]
    check_pack(tmp_path / "pack", {"sub/deep/b.TIFF": pixels["sub/deep/b.TIFF"]})


def test_interrupt_leaves_no_partial_file(photos, tmp_path, monkeypatch):
    folder, pixels = photos
    build(folder, tmp_path / "pack", include=["b.TIFF"])

    def interrupted(paths, **options):
        for count, result in enumerate(decoding.decode_files(paths, **options)):
            if count == 2:
                raise KeyboardInterrupt
            yield result

    with monkeypatch.context() as patch:
        patch.setattr(pack_update, "decode_files", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(folder, tmp_path / "pack", workers=2)
    check_pack(tmp_path / "pack", {"sub/deep/b.TIFF": pixels["sub/deep/b.TIFF"]})


def test_concurrent_runs_wait_for_each_other(tmp_path):
    folder, output = tmp_path / "photos", tmp_path / "pack"
    pixels = {f"{i}.png": save_noise(folder / f"{i}.png", seed=i) for i in range(12)}
    runs = [start_slow_run(folder, output) for _ in range(3)]
    for run in runs:
        with run:
            assert run.wait() == 0
    check_pack(output, pixels)


@pytest.fixture
def decoder(tmp_path, monkeypatch):
    """Insert code into the decoding program, run for files called evil.png; without core dumps."""

    def insert(code):
        head = "def _decode(path: str | Path, min_size: int) -> NDArray[np.uint8]:\n"
        program = Path(decoding.images.__file__).read_text()
        assert program.count(head) == 1
        lines = "".join(f"        {line}\n" for line in code.splitlines())
        (tmp_path / "images.py").write_text(program.replace(head, f"{head}    if path.endswith('evil.png'):\n{lines}"))
        monkeypatch.setattr(decoding.images, "__file__", str(tmp_path / "images.py"))

    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    yield insert
    resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def test_crashed_decoder_skips_one_file(tmp_path, decoder):
    decoder(f"print('x', file=open({str(tmp_path / 'tries')!r}, 'a'))\nprint('words', file=sys.stderr)\nos.abort()")
    folder = tmp_path / "photos"
    pixels = {f"{i}.png": save_noise(folder / f"{i}.png", seed=i) for i in range(6)}
    save_noise(folder / "evil.png")
    report = build(folder, tmp_path / "pack", workers=2)
    assert report.skipped == [("evil.png", "the decoder was killed by SIGABRT: words")]
    assert (tmp_path / "tries").read_text() == "x\nx\n"
    check_pack(tmp_path / "pack", pixels)


def test_killed_decoder_is_restarted(tmp_path, decoder):
    mark = str(tmp_path / "killed")
    decoder(f"if not os.path.exists({mark!r}):\n    open({mark!r}, 'w')\n    os.kill(os.getpid(), 9)")
    folder = tmp_path / "photos"
    pixels = {f"{name}.png": save_noise(folder / f"{name}.png", seed=i) for i, name in enumerate(["a", "evil", "z"])}
    assert build(folder, tmp_path / "pack", workers=1).packed == 3
    assert (tmp_path / "killed").exists()
    check_pack(tmp_path / "pack", pixels)


def test_decoder_killed_twice_stops_and_keeps_the_pack(tmp_path, decoder):
    folder = tmp_path / "photos"
    pixels = {"a.png": save_noise(folder / "a.png", seed=1)}
    build(folder, tmp_path / "pack")
    save_noise(folder / "evil.png", seed=2)
    decoder("os.kill(os.getpid(), 9)")
    with pytest.raises(decoding.DecoderKilledError, match=r"evil\.png: the decoder was killed by SIGKILL twice"):
        build(folder, tmp_path / "pack", workers=2)
    check_pack(tmp_path / "pack", pixels)


def test_decoder_that_does_not_start_raises(photos, tmp_path, monkeypatch):
    program = tmp_path / "images.py"
    program.write_text("raise SystemExit('no Pillow here')")
    monkeypatch.setattr(decoding.images, "__file__", str(program))
    with pytest.raises(RuntimeError, match="ended with exit code 1: no Pillow here"):
        build(photos[0], tmp_path / "pack", workers=2)
