"""Whole training steps of every variant in step_variants.py: the plain ESRGAN step and the AND step, both stages.

    python -m pytest benchmarks/suites/test_step.py --benchmark-group-by=group

On a GPU at the paper's size (batch 48, HR 256, 23 blocks; a smaller batch where memory is short, with the reason) and,
for some variants, at batch 6, one of eight GPUs' share, where host time counts most; on a CPU at a tiny size, which
says nothing about a GPU. A row is a whole step, zero_grad to the optimizers, on images already on the device. Its
``extra_info`` holds:

    variant, baseline   name, and number among the baselines of the design, 4 for andfast
    step, stage         "plain" or "and"; "net" or "gan"
    shipped             whether it computes what the configurations for x4 do on a GPU
    strategy            "pgd" or "fast"
    batch, hr, blocks, features, batch_note       sizes; the reason for a smaller batch, or null
    compiled            whether torch.compile was used; not on a CPU
    milliseconds, images_per_second               of the median round
    host_seconds        median time until the host had enqueued the step; null on a CPU
    overhead            AND step over plain step of the same variant, per image; null in plain rows
    flops               per step, counted by torch's flop counter on the same step uncompiled; flops_per_second
    peak_memory         bytes, torch.cuda.max_memory_allocated during the rounds; null on a CPU
    peak_reserved       likewise torch.cuda.max_memory_reserved, the pools of CUDA graphs included
    parts               seconds per step of identity, ascent, degradation, generator, discriminator, optimizer
    loss_error          largest relative difference of its fp32 losses from the package's without reuse, at a tiny size;
                        a row fails above 1e-2 (stage net: 1e-4); null for strategy fast
"""

import functools
import statistics
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from andfast.functional import dispatch
from andfast.functional.residual_dense_block import NAME as DENSE_BLOCK
from andfast.training.profiling import StepTimer
from benchmarks.suites.step_variants import FULL, SHIPPED, TINY, VARIANTS, Step, Variant, compile_options, loss_error

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
SIZE = FULL if CUDA else TINY
BATCHES = [48, 32, 24, 16, 8, 4] if CUDA else [TINY.batch]
SHARE = 6
"""Batch of one of eight GPUs."""
SHARED = ("andfast bf16", "andfast bf16, CUDA graph", SHIPPED.name, "naive bf16")
"""Variants that are timed at this batch too."""
ROUNDS, WARM_UP = (5, 2) if CUDA else (2, 1)
TOLERANCE = {"net": 1e-4, "gan": 1e-2}
SWITCHES = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
DEFAULTS = [switch.fp32_precision for switch in SWITCHES]
SECONDS = {}
"""Seconds per image by (variant, stage, whether at the small batch) of plain rows, which precede their AND rows."""


@pytest.fixture(autouse=True)
def _precision():
    """cuDNN's benchmark mode, as in training; and PyTorch's switches as they were, afterwards."""
    benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    yield
    torch.backends.cudnn.benchmark = benchmark
    set_precision(SWITCHES, DEFAULTS)
    torch.compiler.reset()


def set_precision(kinds, values):
    for kind, value in zip(kinds, values, strict=True):
        kind.fp32_precision = value


def use_tf32(on):
    set_precision(SWITCHES, ["tf32" if on else "ieee"] * 2)


@functools.cache
def operations(naive, frozen, kind, stage, batch):
    """Of one step, counted without values on the meta device; precision and compilation do not change them."""
    variant = Variant("count", 3 if frozen else 1) if naive else Variant("count", 4)
    step = Step(variant, SIZE.__class__(**{**vars(SIZE), "batch": batch}), stage, "meta")
    with FlopCounterMode(display=False) as counter:
        step.gradients(kind)
    return counter.get_total_flops()


def largest(variant, kind, stage, batches):
    """The step at the largest batch that fits, after its first run, and the reason if it is not the first batch."""
    note = None
    for batch in batches:
        timer = StepTimer(torch.device(DEVICE))
        size = SIZE.__class__(**{**vars(SIZE), "batch": batch})
        try:
            step = Step(variant, size, stage, DEVICE, timer=timer)
            step.whole(kind)
            if CUDA:
                torch.cuda.synchronize()
            return step, timer, note
        except torch.OutOfMemoryError:
            note = f"out of memory at batch {batch}"
        step = None
        torch.cuda.empty_cache()
    pytest.fail(f"{variant.name} does not fit: {note}")


# Variant after variant, the plain step first, so that an interrupted run has whole variants and their overheads.
@pytest.mark.parametrize("kind", ["plain", "and"])
@pytest.mark.parametrize("share", [pytest.param(False, id="full"), pytest.param(True, id="batch6")])
@pytest.mark.parametrize("stage", ["net", "gan"])
@pytest.mark.parametrize("variant", VARIANTS, ids=[variant.name for variant in VARIANTS])
def test_step(benchmark, variant, stage, share, kind):
    if share and not (CUDA and variant.name in SHARED):
        pytest.skip("batch 6 is timed on a GPU, for some variants")
    if variant.graph and not CUDA:
        pytest.skip("CUDA graphs need a CUDA GPU")
    if variant.compiled and variant.baseline == 4 and compile_options(DEVICE) is None:
        pytest.skip("torch.compile on a CPU takes minutes and says nothing about a GPU")
    if (variant.baseline == 5 or variant == SHIPPED) and kind == "plain":
        pytest.skip("it is about the ascent, which a plain step does not have")
    if variant.core and (SIZE.growth % 8 or "cuda" not in dispatch.available(DENSE_BLOCK, DEVICE, torch.bfloat16)):
        pytest.skip("the compiled ops need a GPU and multiples of 8 channels")
    benchmark.group = (
        f"{'plain ESRGAN' if kind == 'plain' else 'AND'} step, stage {stage}, {DEVICE}" + f", batch {SHARE}" * share
    )
    use_tf32(False)
    error = None if variant.fast else loss_error(variant, kind, stage, DEVICE)  # fast has an ascent of its own
    assert error is None or error < TOLERANCE[stage]
    if variant.baseline < 4:
        use_tf32(CUDA)  # as the paper's frameworks did by default on an A100
    else:
        set_precision(SWITCHES, DEFAULTS)  # as in training
    step, timer, note = largest(variant, kind, stage, [SHARE] if share else BATCHES)
    batch = step.size.batch

    hosts = []

    def run():
        begun = time.perf_counter()
        step.whole(kind)
        if CUDA:
            hosts.append(time.perf_counter() - begun)
            torch.cuda.synchronize()

    for _ in range(WARM_UP - 1):
        run()
    timer.take(1)
    hosts.clear()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    benchmark.pedantic(run, rounds=ROUNDS)
    # With --benchmark-disable the step ran once and there are no statistics.
    rounds = ROUNDS if benchmark.stats is not None else 1
    parts = {name: seconds / rounds for name, seconds in timer.take(rounds).items()}
    seconds = statistics.median(benchmark.stats.stats.data) if benchmark.stats is not None else sum(parts.values())
    flops = operations(variant.baseline < 4, variant.baseline == 3, kind, stage, batch)
    if kind == "plain":
        SECONDS[variant.name, stage, share] = seconds / batch
    exact = variant.name.replace(", strategy fast", "").replace(", shipped", "")
    plain = SECONDS.get((exact, stage, share))
    benchmark.extra_info.update(
        variant=variant.name,
        baseline=variant.baseline,
        strategy="fast" if variant.fast else "pgd",
        shipped=variant == SHIPPED,
        step=kind,
        stage=stage,
        batch=batch,
        hr=SIZE.hr,
        blocks=SIZE.blocks,
        features=SIZE.features,
        compiled=step.compiled,
        batch_note=note,
        milliseconds=1e3 * seconds,
        images_per_second=batch / seconds,
        host_seconds=statistics.median(hosts) if hosts else None,
        overhead=None if kind == "plain" or plain is None else seconds / batch / plain,
        flops=flops,
        flops_per_second=flops / seconds,
        peak_memory=torch.cuda.max_memory_allocated() if CUDA else None,
        peak_reserved=torch.cuda.max_memory_reserved() if CUDA else None,
        parts=parts,
        loss_error=error,
        device=torch.cuda.get_device_name() if CUDA else "cpu",
        threads=torch.get_num_threads(),
    )
    assert parts.keys() >= ({"generator", "optimizer"} if kind == "plain" else {"identity", "ascent", "generator"})
