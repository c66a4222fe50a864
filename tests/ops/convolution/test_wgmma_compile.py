"""What nvcc makes of the sm_90a convolution kernels: registers, spills, instructions. No GPU is needed."""

import os
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import triton
from convolution_emulator import SOURCES
from cuda_toolkit import nvcc

KERNEL = re.compile(
    r"Compiling entry function '\w*?(wgmma_\w+|pack_weights\w*)' for 'sm_90a'.*?(\d+) bytes stack frame, "
    r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)
# kernel: dtypes and variants, registers at launch, products of a chunk
KERNELS = {"wgmma_rows": (4, 168, {24}), "wgmma_taps": (6, 96, {18, 8})}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What ptxas says, and the path of the object."""
    compiler = nvcc()
    if compiler is None:
        pytest.skip("needs a CUDA toolkit (nvcc)")
    target = tmp_path_factory.mktemp("wgmma") / "family.o"
    command = [compiler, "-O3", "-std=c++20", "--expt-relaxed-constexpr", "-gencode=arch=compute_90a,code=sm_90a"]
    command += ["-Xptxas=-v", "-c", str(SOURCES / "sm90_family.cu"), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr, target


def instructions(target: Path) -> dict[str, list[str]]:
    """Names of each kernel's instructions in order, without predicates and operands."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    environment = os.environ | {"PATH": os.pathsep.join([str(tool.parent), os.environ["PATH"]])}  # it runs nvdisasm
    text = subprocess.run(
        [tool, "-sass", str(target)], capture_output=True, text=True, check=True, env=environment
    ).stdout
    kernels = {}
    for part in text.split("Function : ")[1:]:
        name, _, body = part.partition("\n")
        kernels[name.strip()] = re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", body)
    return kernels


@pytest.mark.slow
def test_no_spills_and_no_serialised_products(compiled):
    said, _ = compiled
    assert "warning" not in said.lower(), said  # ptxas warns of wgmma that it serialises (C7510 and others)
    found = KERNEL.findall(said)
    for kernel, (variants, registers, _) in KERNELS.items():
        of_kernel = [numbers for name, *numbers in found if name.startswith(kernel)]
        assert len(of_kernel) == variants
        assert all(numbers == ["0", "0", "0", str(registers)] for numbers in of_kernel), of_kernel
    assert [(stored, loaded) for name, _, stored, loaded, _ in found if name.startswith("pack")] == [("0", "0")]


@pytest.mark.slow
def test_instructions(compiled):
    kernels = instructions(compiled[1])
    for kernel, (variants, _, products) in KERNELS.items():
        bodies = [body for name, body in kernels.items() if kernel in name]
        assert len(bodies) == variants
        for body in bodies:
            counts = Counter(name.split(".")[0] for name in body)
            # Products of a chunk go out together: one fence before them, and no wait between them.
            at = [i for i, name in enumerate(body) if name.startswith("HGMMA")]
            assert len(at) in products
            assert body.count("WARPGROUP.ARRIVE") == 1
            assert not any(name.startswith("WARPGROUP.DEPBAR") for name in body[at[0] : at[-1]])
            # 16 bytes each, but for bytes of signs and words of the bias.
            assert {name for name in body if name.startswith("STG")} == {"STG.E.128", "STG.E.U8"}
            assert {name for name in body if name.startswith("LDG")} == {"LDG.E.128", "LDG.E.U8", "LDG.E"}
            assert counts["LDL"] == counts["STL"] == 0
