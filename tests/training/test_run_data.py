"""Training images of a resumed run, and data workers that die."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from andfast.config.schema import DataConfig, TrainConfig
from andfast.data.store import PackError
from andfast.training.checkpoint import CheckpointError
from andfast.training.data import (
    DataLoadingError,
    image_entries,
    next_batches,
    pack_training_images,
    resume_training_images,
    write_image_record,
)


def photograph(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def packed(tmp_path: Path) -> tuple[TrainConfig, dict[str, object]]:
    """A run that has packed two photographs, and the entries of its checkpoints."""
    (tmp_path / "photos").mkdir()
    for seed, name in enumerate(("a.png", "b.png")):
        photograph(tmp_path / "photos" / name, seed)
    (tmp_path / "photos" / "broken.png").write_bytes(b"")
    config = TrainConfig(
        output=tmp_path / "run", data=DataConfig(train=[str(tmp_path / "photos")], patch_size=32, workers=0)
    )
    config.output.mkdir()
    images, skipped = pack_training_images(config)
    write_image_record(config.output, images, skipped)
    return config, image_entries(images)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def lose_pack(config: TrainConfig) -> None:
    for path in (config.output / "data").iterdir():
        path.unlink()


def test_complete_pack_resumes_without_its_sources(packed: tuple[TrainConfig, dict[str, object]]) -> None:
    config, entries = packed
    for path in Path(config.data.train[0]).iterdir():
        path.unlink()
    before = files(config.output / "data")
    assert resume_training_images(config, entries).names == ["a.png", "b.png"]
    assert files(config.output / "data") == before


def test_lost_pack_is_packed_again(packed: tuple[TrainConfig, dict[str, object]]) -> None:
    config, entries = packed
    lose_pack(config)
    assert image_entries(resume_training_images(config, entries)) == entries


def test_other_names_raise_before_packing(packed: tuple[TrainConfig, dict[str, object]]) -> None:
    config, entries = packed
    lose_pack(config)
    photos = Path(config.data.train[0])
    (photos / "a.png").rename(photos / "c.png")
    with pytest.raises(CheckpointError, match=r"data.train differ: 1 missing \(a.png\), 1 new \(c.png\)"):
        resume_training_images(config, entries)
    assert files(config.output / "data") == {}


def test_changed_pixels_raise(packed: tuple[TrainConfig, dict[str, object]]) -> None:
    config, entries = packed
    lose_pack(config)
    photograph(Path(config.data.train[0]) / "b.png", seed=7)
    with pytest.raises(CheckpointError, match=r"data.train differ: 1 changed \(b.png\)"):
        resume_training_images(config, entries)


def test_damaged_pack_raises(packed: tuple[TrainConfig, dict[str, object]]) -> None:
    config, entries = packed
    (shard,) = (config.output / "data").glob("pixels-*.bin")
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(PackError, match=r"pixels-0000.bin is damaged: the pixels of a.png"):
        resume_training_images(config, entries)


def test_dead_worker_raises() -> None:
    def dying() -> Any:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that\nmore")

    class Batches:
        def __next__(self) -> Any:
            return dying()

    with pytest.raises(DataLoadingError, match=r"pid 7\) is killed by signal: Bus error\. .*--shm-size\)$"):
        next_batches(Batches(), 1)  # type: ignore[arg-type]
