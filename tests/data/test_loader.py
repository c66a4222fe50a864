"""Training batches: independent of workers, ranks and restarts; worker processes exit; prefetching."""

import os
import signal
import subprocess
import sys
import time
from itertools import islice

import numpy as np
import pytest
import torch

from andfast.data import loader as loader_module
from andfast.data.crops import CropDataset
from andfast.data.loader import DevicePrefetcher, training_loader
from andfast.data.pack import pack_images
from andfast.data.store import PackedImages

PATCH = 16


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Crops of photographs."""
    pack = tmp_path_factory.mktemp("data") / "pack"
    include = ["astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "camera.png"]
    pack_images(["package:skimage/data"], pack, min_size=PATCH, include=include, workers=0, progress=False)
    return CropDataset(PackedImages(pack), PATCH, seed=1, stage="net")


def batches(dataset, count, **options):
    with training_loader(dataset, **{"batch_size": 4, "workers": 0} | options) as loader:
        return list(islice(loader, count))


def test_batches_are_the_samples_in_order(dataset):
    first, second = batches(dataset, 2)
    assert first.dtype == torch.uint8
    assert first.shape == (4, 3, PATCH, PATCH)
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(first, torch.stack([dataset[g] for g in range(4)]))
    assert torch.equal(second, torch.stack([dataset[g] for g in range(4, 8)]))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_do_not_change_the_batches(dataset, workers):
    expected = batches(dataset, 7)
    loaded = batches(dataset, 7, workers=workers)
    assert all(torch.equal(a, b) for a, b in zip(expected, loaded, strict=True))
    assert loaded[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("workers", [0, 2])
def test_start_batch_continues_the_sequence(dataset, workers):
    whole = batches(dataset, 9)
    rest = batches(dataset, 4, start_batch=5, workers=workers)
    assert all(torch.equal(a, b) for a, b in zip(whole[5:], rest, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_two_ranks_equal_one(dataset, workers):
    batch = batches(dataset, 5, batch_size=6)
    two = [batches(dataset, 5, batch_size=3, rank=rank, world_size=2, workers=workers) for rank in range(2)]
    for step in range(5):
        assert torch.equal(torch.cat([two[0][step], two[1][step]]), batch[step])


def test_accumulation_equals_a_larger_batch(dataset):
    large, small = batches(dataset, 3, batch_size=8), batches(dataset, 6, batch_size=4)
    for step in range(3):
        assert torch.equal(torch.cat(small[2 * step : 2 * step + 2]), large[step])


def test_global_rng_state_is_unchanged(dataset):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    batches(dataset, 3, workers=2)
    assert torch.equal(torch.get_rng_state(), before)


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Report:
    """Samples that describe the worker: threads, ignored signals, process id."""

    def __getitem__(self, g):
        ignored = [signal.getsignal(number) is signal.SIG_IGN for number in SIGNALS]
        values = [torch.get_num_threads(), *ignored, os.getpid() % 65536 // 256, os.getpid() % 256]
        return torch.tensor(values, dtype=torch.uint8).reshape(7, 1, 1)


def test_workers_are_single_threaded_and_ignore_signals():
    with training_loader(Report(), batch_size=2, workers=2) as loader:
        first = next(loader)
        assert first[0, :5].flatten().tolist() == [1, 1, 1, 1, 1]
        next(loader)  # from the second worker
        pids = [worker.pid for worker in loader._iterator._workers]
        for pid in pids:
            for number in SIGNALS:
                os.kill(pid, number)
        for _ in range(10):
            next(loader)
        assert all(alive(pid) for pid in pids)
    assert not any(alive(pid) for pid in pids)


def test_dead_worker_raises_at_the_next_batch_only():
    """PyTorch's SIGCHLD handler would raise in whatever the training process is doing."""
    with training_loader(Report(), batch_size=2, workers=2) as loader:
        next(loader)
        watched = loader._iterator._workers[0]
        os.kill(watched.pid, signal.SIGKILL)
        os.waitid(os.P_PID, watched.pid, os.WEXITED | os.WNOWAIT)  # it stays for PyTorch's handler to find
        time.sleep(0.01)
        assert "killed" in str(loader._watch.error)
        with pytest.raises(RuntimeError, match=rf"worker \(pid {watched.pid}\) is killed by signal: Killed"):
            next(loader)
    assert signal.getsignal(signal.SIGCHLD) != loader._watch._handle


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


TRAINING = """
import os, signal, sys, time
import numpy as np
from andfast.data.crops import CropDataset
from andfast.data.loader import training_loader

stopped = []
if sys.argv[1] == "handler":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.append(1))
dataset = CropDataset([np.zeros((64, 64, 3), np.uint8)], 32, seed=0, stage=0)
loader = training_loader(dataset, batch_size=4, workers=2)
next(loader)
print(*(worker.pid for worker in loader._iterator._workers), flush=True)
while not stopped:
    next(loader)
    if sys.argv[1] == "raise":
        raise RuntimeError("in the loop")
    time.sleep(0.01)
for _ in range(20):
    next(loader)  # finish the step after the signal
print("finished", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "number", "whole_group", "code"),
    [
        ("handler", signal.SIGINT, True, 0),
        ("none", signal.SIGTERM, True, -signal.SIGTERM),
        ("none", signal.SIGKILL, False, -signal.SIGKILL),
        ("raise", None, False, 1),
    ],
)
def test_workers_exit_with_the_training_process(way, number, whole_group, code):
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", TRAINING, way],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        time.sleep(0.1)
        if number is not None:
            (os.killpg if whole_group else os.kill)(process.pid, number)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == code, errors
    if way == "handler":
        assert (output, errors) == ("finished\n", "")
    deadline = time.monotonic() + 20  # workers check for their parent every five seconds
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, was 0"),
        ({"start_batch": -1}, "start_batch must be at least 0, was -1"),
        ({"world_size": 0}, "world_size must be at least 1, was 0"),
        ({"rank": 2, "world_size": 2}, "rank must be below world_size 2, was 2"),
        ({"workers": -1}, "workers must be at least 0, was -1"),
    ],
)
def test_rejects_invalid_arguments(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        training_loader(dataset, **{"batch_size": 4, "workers": 0} | options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_rejects_pin_memory_without_cuda(dataset):
    with pytest.raises(ValueError, match="pin_memory must be False without a CUDA device"):
        training_loader(dataset, batch_size=4, workers=0, pin_memory=True)


def test_too_little_shared_memory_raises(dataset, monkeypatch):
    monkeypatch.setattr(loader_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(loader_module, "SHARED_MEMORY", os.getcwd())
    with pytest.raises(RuntimeError, match=r"workers=2 need .* MB of shared memory"):
        training_loader(dataset, batch_size=4, workers=2)
    assert len(batches(dataset, 1)) == 1  # not needed without workers


def test_closed_loader_raises(dataset):
    loader = training_loader(dataset, batch_size=4, workers=0)
    loader.close()
    loader.close()
    with pytest.raises(RuntimeError, match="the loader is closed"):
        next(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_prefetcher_converts_to_unit_floats(dataset, workers):
    expected = batches(dataset, 3)
    with DevicePrefetcher(training_loader(dataset, batch_size=4, workers=workers), "cpu") as prefetcher:
        for raw in expected:
            batch = next(prefetcher)
            assert batch.dtype == torch.float32
            assert batch.is_contiguous(memory_format=torch.channels_last)
            np.testing.assert_array_equal(batch.numpy(), raw.numpy().astype(np.float32) / np.float32(255))
        inner = prefetcher._loader
    with pytest.raises(RuntimeError, match="the loader is closed"):
        next(inner)
    with pytest.raises(RuntimeError, match="the prefetcher is closed"):
        next(prefetcher)


def test_prefetcher_measures_waiting_time():
    def slow():
        for _ in range(3):
            time.sleep(0.05)
            yield torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)

    prefetcher = DevicePrefetcher(slow(), torch.device("cpu"))
    assert prefetcher.waited_seconds == 0
    next(prefetcher)
    assert prefetcher.waited_seconds >= 0.05
    time.sleep(1)  # the caller's time is not counted
    assert sum(1 for _ in prefetcher) == 2
    assert 0.15 <= prefetcher.waited_seconds < 1
    prefetcher.close()


def test_workers_load_while_the_caller_computes():
    class Slow:
        def __getitem__(self, g):
            time.sleep(0.1)
            return torch.zeros((3, 2, 2), dtype=torch.uint8)

    with DevicePrefetcher(training_loader(Slow(), batch_size=2, workers=1), "cpu") as prefetcher:
        next(prefetcher)
        waited = prefetcher.waited_seconds
        for _ in range(5):
            time.sleep(0.5)  # longer than the 0.2 s of a batch
            next(prefetcher)
        assert prefetcher.waited_seconds - waited < 0.5  # at least 1 s without overlap


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_prefetcher_on_the_gpu(dataset, workers):
    expected = batches(dataset, 20, batch_size=16)
    loader = training_loader(dataset, batch_size=16, workers=workers, pin_memory=True)
    with DevicePrefetcher(loader, "cuda") as prefetcher:
        kept = []
        for raw in expected:
            batch = next(prefetcher)
            assert batch.device.type == "cuda"
            assert batch.is_contiguous(memory_format=torch.channels_last)
            busy = torch.randn(2000, 2000, device="cuda")
            kept.append((batch * 255 + 0 * (busy @ busy).mean()).round().to(torch.uint8))  # read late on the stream
            del batch
            assert kept[-1].shape == raw.shape
    for raw, used in zip(expected, kept, strict=True):
        assert torch.equal(used.cpu(), raw)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_prefetcher_on_the_gpu_stops_with_its_loader():
    source = iter([torch.full((1, 3, 4, 4), value, dtype=torch.uint8) for value in (0, 255)])
    assert [float(batch.mean()) for batch in DevicePrefetcher(source, "cuda")] == [0.0, 1.0]
