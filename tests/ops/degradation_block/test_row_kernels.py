"""The degradation block's row kernels: parity, and compiled code.

test_degradation_block_kernels.py runs this file in Triton's interpreter.
"""

import random
from typing import Any

import pytest
import torch
import triton_interpreter
from comparison import assert_near
from degradation_block_exact import FORWARD, exact_results
from reference_triton import only_with_reference_triton
from triton_interpreter import INTERPRETED

from andfast.kernels.common.config import KernelConfig
from andfast.kernels.degradation_block.configs import ROWS, ROWS_CANDIDATES, TABLE

pytestmark = triton_interpreter.quiet

if not INTERPRETED:
    from andfast.kernels.common.compilation import compile_variant, excess, resources
    from andfast.kernels.degradation_block.variants import Variant, variants_of

    CASES = [(architecture, kernel) for architecture, kernels in ROWS_CANDIDATES.items() for kernel in kernels]

    def _variants(architecture: str, kernel: str, config: KernelConfig) -> dict[tuple[int, int], Variant]:
        variants = [v for v in variants_of(architecture, kernel, "half", config) if v.config == config]
        return {(v.block_in, v.block_out): v for v in variants if v.dtype == "bf16"}

    @only_with_reference_triton
    @pytest.mark.parametrize(("architecture", "kernel"), CASES)
    def test_candidates_compile_without_spills(architecture: str, kernel: str) -> None:
        for config in ROWS_CANDIDATES[architecture][kernel]:
            variants = _variants(architecture, kernel, config)
            assert len(variants) == (2 if config.block_k == 16 else 4)
            used = resources(compile_variant(variants[max(variants)]))
            assert excess(used, architecture) is None, f"{variants[max(variants)].name()} {config}"

    def _compile(architecture: str, kernel: str) -> Any:
        variants = _variants(architecture, kernel, ROWS_CANDIDATES[architecture][kernel][0])
        return compile_variant(variants[max(variants)])

    @pytest.mark.parametrize("architecture", ROWS_CANDIDATES)
    @pytest.mark.parametrize("kernel", ["forward", "grad_input"])
    def test_weights_stay_in_shared_memory(architecture: str, kernel: str) -> None:
        """Nine stores of weights before the loop; forward's rows come by asynchronous copies, three per row."""
        compiled = _compile(architecture, kernel)
        before, loop = compiled.asm["ttgir"].split("scf.for", 1)
        assert before.count("ttg.local_alloc %") == 9
        if kernel == "forward":
            assert loop.count("ttg.async_copy_global_to_local") == 3
            assert "ttg.local_alloc %" not in loop
        if architecture == "9.0":  # with fewer waits, sums stay in flight over an iteration and ptxas serializes
            assert compiled.asm["ptx"].count("wgmma.wait_group") == compiled.asm["ptx"].count("wgmma.commit_group") == 9

    @pytest.mark.parametrize("architecture", ROWS_CANDIDATES)
    def test_weight_gradient_keeps_sums_in_registers(architecture: str) -> None:
        """Per row: three asynchronous copies of x and one of g, three moves of gz to shared memory, nine products."""
        compiled = _compile(architecture, "grad_weight")
        loop = compiled.asm["ttgir"].split("scf.for", 1)[1].split("scf.yield", 1)[0]
        assert loop.count("ttg.async_copy_global_to_local") == 4
        assert loop.count("ttg.local_alloc %") == 3
        assert loop.count("ttng.warp_group_dot " if architecture == "9.0" else "tt.dot ") == 9
        if architecture == "9.0":  # four wgmma of 16 pixels per product, which ptxas does not serialize
            assert compiled.asm["ptx"].count("wgmma.mma_async") == 36
            assert compiled.asm["ptx"].count("wgmma.commit_group") == 9

    def test_table_has_no_row_kernels_yet() -> None:
        assert all(config.design == "" for entries in TABLE.values() for config in entries.values())


if INTERPRETED:
    from andfast.kernels.degradation_block import forward as forward_kernel
    from andfast.kernels.degradation_block import forward_rows, grad_input_rows, grad_weight_rows
    from andfast.kernels.degradation_block import grad_input as grad_input_kernel
    from andfast.kernels.degradation_block import grad_weight as grad_weight_kernel
    from andfast.kernels.degradation_block import saved as saved_form

    triton_interpreter.repair()

    def _grid(generator: torch.Generator, *shape: int) -> torch.Tensor:
        """Multiples of 1/8: sums of products are exact in fp32, so the sign of z does not depend on rounding."""
        return torch.randint(-8, 9, shape, generator=generator) / 8

    def _arguments(seed: int, c_in: int, c_out: int, dtype: torch.dtype) -> list[Any]:
        g, t = random.Random(seed), torch.Generator().manual_seed(seed)
        n = g.choice([1, 2])
        height, width = (g.choice([1, 2, 3, 5, 8, 13]) for _ in range(2))
        x = _grid(t, n, c_in, height, width).to(dtype)
        weight = _grid(t, *([n] if g.random() < 0.7 else []), c_out, c_in, 3, 3).to(dtype)
        slope = torch.tensor([g.choice([-0.25, 0.0, 0.2, 1.0, 1.75]) for _ in range(n)])
        maps = g.choice([0, 1, c_out])
        noise = _grid(t, n, maps, height, width).to(g.choice([dtype, torch.float32])) if maps else None
        if g.random() < 0.3:
            x[0, 0, g.randrange(height), g.randrange(width)] = g.choice([float("nan"), float("inf")])
        arguments = [x, weight, slope if g.random() < 0.7 else slope[0], noise]
        return [
            a.contiguous(memory_format=torch.channels_last) if a is not None and a.dim() == 4 and a is not weight else a
            for a in arguments
        ]

    def _forward(arguments: list[Any], config: KernelConfig, save: int, padding: str = "replicate") -> Any:
        return forward_kernel.forward(
            *arguments, save=save, memory_format=torch.channels_last, replicate=padding == "replicate", tf32=False,
            config=config,
        )  # fmt: skip

    @pytest.mark.parametrize("seed", range(6))
    def test_parity_of_forward(seed: int) -> None:
        g = random.Random(seed)
        c_in, c_out = ((16, 16), (16, 80), (32, 16), (16, 16), (16, 32), (64, 16))[seed]
        dtype = torch.float16 if seed % 4 == 3 else torch.float32
        arguments = _arguments(seed, c_in, c_out, dtype)
        config = KernelConfig(g.choice([1, 2, 4, 8]), g.choice([4, 8, 16]), 64, 4, g.choice([1, 2]), design=ROWS)
        double = [None if a is None else a.double() for a in arguments]
        exact, z = FORWARD(*double, "replicate", True, "reference")
        tiles, tile_bits = _forward(arguments, KernelConfig(8, 8, 64, 4, 1), saved_form.SAVE_BITS)
        out, bits = _forward(arguments, config, saved_form.SAVE_BITS)
        assert_near(out, exact, 1e-5 if dtype == torch.float32 else 2e-3, f"seed {seed}, {config}")
        assert torch.equal(bits, tile_bits)
        assert torch.equal(out.isnan(), tiles.isnan())
        again, nothing = _forward(arguments, config, saved_form.SAVE_NOTHING)
        assert nothing.numel() == 0
        assert torch.equal(again.nan_to_num(), out.nan_to_num())
        n, _, height, width = out.shape
        channel = torch.arange(c_out)
        signs = (bits.reshape(n, height, width, -1)[..., channel // 8] >> (channel % 8).to(torch.uint8)) & 1
        assert torch.equal(signs.bool(), (z > 0).permute(0, 2, 3, 1))

    def _grad_input(grad: torch.Tensor, arguments: list[Any], config: KernelConfig, **changes: Any) -> Any:
        x, weight, slope, _ = arguments
        _, bits = _forward(
            arguments, KernelConfig(8, 8, 64, 4, 1), saved_form.SAVE_BITS, changes.get("padding", "replicate")
        )
        return grad_input_kernel.grad_input(
            grad, x, weight, slope, bits, replicate=changes.get("padding") != "zeros",
            noise_map=changes.get("noise_map"), tf32=False, memory_format=torch.channels_last, config=config,
        )  # fmt: skip

    @pytest.mark.parametrize("seed", range(8))
    def test_parity_of_gradient(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        g = random.Random(seed)
        c_in, c_out = ((16, 16), (80, 16), (32, 16), (16, 16), (16, 32), (16, 64), (16, 16), (16, 16))[seed]
        dtype = torch.float16 if seed % 4 == 3 else torch.float32
        arguments = _arguments(seed, c_in, c_out, dtype)
        arguments[0].nan_to_num_(0.5, 0.5)
        generator = torch.Generator().manual_seed(seed)
        n, _, height, width = arguments[0].shape
        grad = _grid(generator, n, c_out, height, width).to(dtype).contiguous(memory_format=torch.channels_last)
        if seed % 4 == 1:
            grad[0, 0, g.randrange(height), g.randrange(width)] = float("inf")
        config = KernelConfig(g.choice([1, 2, 4, 8]), g.choice([4, 8, 16]), 64, 4, g.choice([1, 2]), design=ROWS)
        launched = []
        launch = grad_input_rows.launch
        monkeypatch.setattr(grad_input_rows, "launch", lambda *a, **k: (launched.append(1), launch(*a, **k)))
        grad_x, grad_noise = _grad_input(grad, arguments, config)
        assert launched
        assert grad_noise is None
        exact = exact_results(arguments, "replicate", grad)[1]
        assert_near(grad_x, exact, 1e-5 if dtype == torch.float32 else 2e-3, f"seed {seed}, {config}")

    def _grad_weight(grad: torch.Tensor, arguments: list[Any], config: KernelConfig, padding: str = "replicate") -> Any:
        _, saved = _forward(arguments, KernelConfig(8, 8, 64, 4, 1), saved_form.SAVE_Z, padding)
        return grad_weight_kernel.grad_weight(
            grad, *arguments[:3], saved, replicate=padding == "replicate", want_weight=True,
            want_slope=grad.numel() > 0, tf32=False, config=config,
        )  # fmt: skip

    @pytest.mark.parametrize("seed", range(6))
    def test_parity_of_weight_gradient(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also NaN in rows of x that every tap reads, and infinity in the gradient."""
        g = random.Random(seed)
        c_in, c_out = ((16, 16), (80, 16), (32, 16), (16, 16), (16, 32), (16, 64))[seed]
        dtype = torch.float16 if seed % 4 == 3 else torch.float32
        arguments = _arguments(seed, c_in, c_out, dtype)
        x = arguments[0].nan_to_num_(0.5, 0.5)
        n, _, height, width = x.shape
        grad = _grid(torch.Generator().manual_seed(seed), n, c_out, height, width).to(dtype)
        grad = grad.contiguous(memory_format=torch.channels_last)
        if seed % 4 == 1:
            grad[0, 0, g.randrange(height), g.randrange(width)] = float("inf")
        if seed % 2 == 0 and height > 2:
            x[0, 0, g.randrange(1, height - 1), g.randrange(width)] = float("nan")
        config = KernelConfig(g.choice([1, 2, 4]), g.choice([16, 32]), 64, 4, 1, g.choice([1, 4, 40]), design=ROWS)
        launched = []
        launch = grad_weight_rows.launch
        monkeypatch.setattr(grad_weight_rows, "launch", lambda *a, **k: (launched.append(1), launch(*a, **k))[1])
        dweight, dslope = _grad_weight(grad, arguments, config)
        assert launched
        exact = exact_results(arguments, "replicate", grad)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-3
        assert dweight.shape == arguments[1].shape
        assert_near(dweight, exact[2], tolerance, f"weight, seed {seed}, {config}")
        assert_near(dslope.sum(1) if arguments[2].dim() else dslope.sum(), exact[3], tolerance, f"slope, seed {seed}")
        if seed == 3:
            assert torch.equal(_grad_weight(grad, arguments, config)[0], dweight)

    @pytest.mark.parametrize(
        ("images", "height", "width", "programs", "expected"),
        [(48, 256, 256, 768, (4, 4)), (48, 64, 64, 768, (1, 4)), (1, 5, 3, 768, (1, 1)), (1, 100, 65, 9, (2, 5))],
    )
    def test_row_parts(images: int, height: int, width: int, programs: int, expected: tuple[int, int]) -> None:
        config = KernelConfig(16, 64, 64, 8, 2, programs, design=ROWS)
        assert grad_weight_rows.row_parts(images, 64, height, width, config) == expected

    @pytest.mark.parametrize("case", ["zeros", "slope per channel", "empty", "3 channels"])
    def test_weight_gradient_falls_back_to_tiles(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(grad_weight_rows, "launch", None)
        padding = "zeros" if case == "zeros" else "replicate"
        arguments = _arguments(1, 3 if case == "3 channels" else 16, 16, torch.float32)
        arguments[0].nan_to_num_(0.5, 0.5)
        if case == "slope per channel":
            arguments[2] = torch.ones(len(arguments[0]), 16)
        if case == "empty":
            arguments[0] = arguments[0][:, :, :0]
            arguments[3] = None
        grad = torch.ones(len(arguments[0]), 16, *arguments[0].shape[2:]).contiguous(memory_format=torch.channels_last)
        dweight, _ = _grad_weight(grad, arguments, ROWS_CANDIDATES["8.0"]["grad_weight"][0], padding)
        assert_near(dweight, exact_results(arguments, padding, grad)[2], 1e-5, case)

    @pytest.mark.parametrize("changes", [{"padding": "zeros"}, {"noise_map": torch.float32}])
    def test_gradient_falls_back_to_tiles(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(grad_input_rows, "launch", None)
        arguments = _arguments(1, 16, 16, torch.float32)
        arguments[0].nan_to_num_(0.5, 0.5)
        grad = torch.ones_like(arguments[0])
        grad_x, _ = _grad_input(grad, arguments, ROWS_CANDIDATES["8.0"]["grad_input"][0], **changes)
        assert_near(grad_x, exact_results(arguments, changes.get("padding", "replicate"), grad)[1], 1e-5, str(changes))

    @pytest.mark.parametrize(
        "case", ["zeros", "slope per channel", "z kept", "3 channels", "80 channels", "contiguous", "covered"]
    )
    def test_falls_back_to_tiles(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def launch(*_: Any, **__: Any) -> None:
            raise AssertionError("the row kernel was launched")

        monkeypatch.setattr(forward_rows, "launch", launch)
        c_in = {"3 channels": 3, "80 channels": 80}.get(case, 16)
        arguments = _arguments(1, c_in, 16, torch.float32)
        if case == "slope per channel":
            arguments[2] = torch.ones(len(arguments[0]), 16)
        if case == "contiguous":
            arguments[0] = arguments[0].contiguous()
            if arguments[0].stride(1) == 1:
                pytest.fail("the case needs more than one pixel")
        padding = "zeros" if case == "zeros" else "replicate"
        save = saved_form.SAVE_Z if case == "z kept" else saved_form.SAVE_BITS
        config = ROWS_CANDIDATES["8.0"]["forward"][0]
        if case == "covered":
            with pytest.raises(AssertionError, match="row kernel was launched"):
                _forward(arguments, config, save, padding)
            return
        exact = FORWARD(*(None if a is None else a.double() for a in arguments), padding, False, "reference")[0]
        assert_near(_forward(arguments, config, save, padding)[0], exact, 1e-5, case)
