"""Throughput of the data path on scikit-image's photographs: packing, cropping, batches on the device.

``extra_info`` of each result holds pictures or crops per second. ANDFAST_STEP_SECONDS, the time of a training step of
48 images (of a row of test_step.py), adds how many times the loader keeps up with it, ``loader_over_step``;
``taskset -c 0,1`` measures two cores.
"""

import itertools
import os

import pytest
import torch

from andfast.data.crops import CropDataset
from andfast.data.loader import DevicePrefetcher, _to_unit, training_loader
from andfast.data.pack import pack_images
from andfast.data.store import PackedImages

PATCH, BATCH, BATCHES = 256, 16, 20
STEP = os.environ.get("ANDFAST_STEP_SECONDS")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Crops of 256x256 of all photographs that are large enough."""
    pack = tmp_path_factory.mktemp("data") / "pack"
    pack_images(["package:skimage/data"], pack, min_size=PATCH, progress=False)
    return CropDataset(PackedImages(pack), PATCH, seed=0, stage="benchmark")


@pytest.mark.benchmark(group="data: pack")
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_pack(benchmark, tmp_path, workers):
    outputs = (tmp_path / str(i) for i in itertools.count())

    def pack():
        return pack_images(["package:skimage/data"], next(outputs), min_size=PATCH, workers=workers, progress=False)

    report = benchmark.pedantic(pack, rounds=3)
    assert report.packed > 10
    benchmark.extra_info["pictures_per_second"] = report.packed / benchmark.stats["min"]
    benchmark.extra_info["megabytes_per_second"] = report.bytes / 1e6 / benchmark.stats["min"]


@pytest.mark.benchmark(group="data: pack")
def test_pack_unchanged(benchmark, tmp_path):
    def pack():
        return pack_images(["package:skimage/data"], tmp_path, min_size=PATCH, exclude=SMALL, progress=False)

    assert pack().reused == 0
    assert benchmark(pack).packed == 0


SMALL = [
    "multipage*",
    "microaneurysms*",
    "chessboard*",
    "page*",
    "text*",
]  # skipped, so examined again each time


@pytest.mark.benchmark(group="data: crop of 256x256")
def test_crop(benchmark, dataset):
    numbers = itertools.count()
    crop = benchmark(lambda: dataset[next(numbers)])
    assert crop.shape == (3, PATCH, PATCH)
    benchmark.extra_info["crops_per_second"] = 1 / benchmark.stats["median"]


@pytest.mark.benchmark(group="data: 20 batches of 16 crops of 256x256")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_loader(benchmark, dataset, workers, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    loader = training_loader(dataset, batch_size=BATCH, workers=workers, pin_memory=device == "cuda")
    with DevicePrefetcher(loader, device) as batches:

        def load():
            for batch in itertools.islice(batches, BATCHES):
                last = batch
            if device == "cuda":
                torch.cuda.synchronize()
            return last

        batch = benchmark.pedantic(load, rounds=5, warmup_rounds=1)
    assert batch.shape == (BATCH, 3, PATCH, PATCH)
    crops_per_second = BATCH * BATCHES / benchmark.stats["median"]
    benchmark.extra_info.update(
        crops_per_second=crops_per_second,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        # The step that this loader keeps up with: a batch of 48 must not take the GPU less than that.
        milliseconds_of_48=1e3 * 48 / crops_per_second,
    )
    if STEP:
        benchmark.extra_info["loader_over_step"] = crops_per_second / (48 / float(STEP))


@pytest.mark.benchmark(group="data: what a batch of 48 costs on one core")
@pytest.mark.parametrize("part", ["sampler", "crop", "copy"])
def test_shares(benchmark, dataset, part):
    """Drawing where crops lie, cutting them (drawing included), and the copy to floats in [0, 1] on the device.

    Sampler and crop run in the loader's processes beside the step; ``share_of_step`` (with ANDFAST_STEP_SECONDS) is a
    part's time, all on one core, over the step's.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    numbers = itertools.count()
    batch = torch.stack([torch.as_tensor(dataset[i]) for i in range(48)])
    batch = batch.pin_memory() if device == "cuda" else batch

    def run():
        if part == "sampler":
            return [dataset._random(0, next(numbers), 3) for _ in range(48)]
        if part == "crop":
            return [dataset[next(numbers)] for _ in range(48)]
        copied = _to_unit(batch.to(device, non_blocking=True))
        if device == "cuda":
            torch.cuda.synchronize()
        return copied

    assert len(benchmark(run)) == 48
    if benchmark.stats is not None:
        seconds = benchmark.stats["median"]
        benchmark.extra_info.update(device=device, milliseconds=1e3 * seconds)
        if STEP:
            benchmark.extra_info["share_of_step"] = seconds / float(STEP)
