"""Builds andfast's compiled parts (csrc/); the metadata is in pyproject.toml.

``andfast._ops``
    All that takes tensors: blur_pool for the CPU and, with CUDA, for the GPU, and the convolutions of csrc/convolution.
    Registered with torch's stable ABI and without Python symbols, so that one binary serves every torch from 2.11 on.
``andfast._C``
    Host queries without tensors, by pybind11; it needs no torch, and is built for one version of Python.

torch must be installed first, and pip must use it: ``pip install --no-build-isolation .`` (or ``-e .``), which is what
the Makefile does. Under build isolation pip hides torch from this file, and installs the pure-Python package.

Environment variables:

``ANDFAST_CPU_ONLY=1``
    Build the CPU part only, CUDA toolkit or not.
``ANDFAST_CUDA_ARCHS="8.0;9.0a"``
    Build the CUDA part (csrc/**/*.cu) for these compute capabilities; no GPU need be present. It is an error if it
    cannot be built. 9.0 is built as 9.0a, which its matrix instructions (wgmma) need. Unset: built for 8.0, 9.0a and,
    by PTX of 8.0, what comes after them ("8.0+PTX;9.0a") if there is a toolkit that works and whose major version is
    that of torch's CUDA; else a printed line, and the CPU part only.
``ANDFAST_REQUIRE_EXT=1``
    A missing torch or compiler is an error. Unset: a printed warning and an install without the extension; the ops then
    run their reference implementations, and tell on request (``impl="cpp"``) why.
``ANDFAST_PREBUILT_OPS=FILE``
    Package FILE, an andfast._ops built before for ANDFAST_CUDA_ARCHS (if unset: for the CPU only), and compile
    andfast._C alone, for this Python. torch need not be installed, but pybind11's headers must be on the compiler's
    include path.
``CUDA_HOME``, ``CXX``, ``MAX_JOBS``
    As torch.utils.cpp_extension reads them.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
DEFAULT_ARCHS = "8.0+PTX;9.0a"
STABLE_ABI = "0x020b000000000000"  # of torch 2.11, the oldest that andfast._ops loads into
ARCH = r"\d+\.\d+[a-z]?(\+PTX)?"
NVCC_FLAGS = ["-O3", "-std=c++20", "--expt-relaxed-constexpr", "-Xfatbin=-compress-all"]
# Without the last two, comparisons keep loops over half types from being vectorised; torch is built so too.
CXX_FLAGS = ["-O3", "-std=c++20", "-fvisibility=hidden", "-Wall", "-fno-math-errno", "-fno-trapping-math"]
BINDINGS = "csrc/bindings.cpp"
METADATA_COMMANDS = {"egg_info", "dist_info", "sdist", "--version", "--name"}
PROBE = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
__global__ void kernel(float* x) { *x = __bfloat162float(__float2bfloat16(*x)); }
extern "C" int andfast_probe() { kernel<<<1, 1>>>(nullptr); return cudaGetLastError(); }
"""


def switched_on(name: str) -> bool:
    """Whether the environment variable is set to 1; anything but 0, 1 and nothing is an error."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        sys.exit(f"andfast: {name} must be 0 or 1, was {value!r}")
    return value == "1"


def sources(pattern: str) -> list[str]:
    """Files of csrc/, relative to the project as setuptools wants them."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob(pattern))


def asked_archs() -> str:
    """The compute capabilities that ANDFAST_CUDA_ARCHS asks for, or nothing; what cannot be met is an error."""
    asked = os.environ.get("ANDFAST_CUDA_ARCHS", "")
    if asked and switched_on("ANDFAST_CPU_ONLY"):
        sys.exit("andfast: ANDFAST_CPU_ONLY=1 and ANDFAST_CUDA_ARCHS contradict each other; unset one of them")
    if asked and not re.fullmatch(rf"{ARCH}(;{ARCH})*", asked):
        sys.exit(f"andfast: ANDFAST_CUDA_ARCHS must be compute capabilities like 8.0;9.0a, was {asked!r}")
    if asked and not sources("*.cu"):
        sys.exit(f"andfast: ANDFAST_CUDA_ARCHS={asked!r} asks for the CUDA part, but csrc/ has no .cu files")
    return asked


def prebuilt_ops() -> str | None:
    """The library to package as andfast._ops, or None to compile it."""
    file = os.environ.get("ANDFAST_PREBUILT_OPS")
    if file and not Path(file).is_file():
        sys.exit(f"andfast: ANDFAST_PREBUILT_OPS must be an existing file, was {file!r}")
    return file or None


def missing() -> str | None:
    """Why the extension cannot be built here, or None."""
    compiler = os.environ.get("CXX", "c++")  # torch.utils.cpp_extension's own default
    if shutil.which(compiler.split()[-1]) is None:
        return f"no C++ compiler: {compiler} is not on the PATH"
    if prebuilt_ops() is not None:
        return None
    try:
        import torch  # noqa: F401, PLC0415
    except ImportError as error:
        return f"torch cannot be imported ({error}); install it first and use pip's --no-build-isolation"
    return None


def toolkit() -> bool:
    """Whether there is a CUDA toolkit. CUDA_HOME is set to it, because nvcc on the PATH may be a wrapper elsewhere.

    To be called before torch.utils.cpp_extension is imported, which takes the folder above any nvcc for the toolkit.
    """
    given, nvcc = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"), shutil.which("nvcc")
    homes = [given] if given else [*([Path(nvcc).resolve().parent.parent] if nvcc else []), "/usr/local/cuda"]
    for home in map(Path, homes):
        if (home / "include" / "cuda_runtime.h").is_file():
            os.environ["CUDA_HOME"] = str(home)
            return True
    return False


def toolkit_problem(archs: str) -> str | None:
    """Why the toolkit in CUDA_HOME cannot build for this torch and these capabilities, or None; a kernel is tried.

    Toolkits come without parts (libraries, half of their headers), too old for an architecture, or too old for the C++
    compiler; torch refuses another major version.
    """
    import torch  # noqa: PLC0415

    home = Path(os.environ["CUDA_HOME"])
    nvcc = str(home / "bin" / "nvcc")
    try:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        return f"{nvcc} does not run: {error}"
    release = re.search(r"release (\d+)\.(\d+)", said)
    if release and torch.version.cuda and release[1] != torch.version.cuda.split(".")[0]:
        return f"{home} is CUDA {release[1]}.{release[2]}, torch {torch.__version__} is built for {torch.version.cuda}"
    if METADATA_COMMANDS.intersection(sys.argv[1:2]):
        return None  # nothing is built
    codes = [arch.removesuffix("+PTX").replace(".", "") for arch in archs.split(";")]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cu")
        source.write_text(PROBE)
        targets = [f"-gencode=arch=compute_{code},code=sm_{code}" for code in codes]
        host = ["-ccbin", os.environ["CXX"].split()[-1]] if os.environ.get("CXX") else []
        command = [nvcc, *NVCC_FLAGS, *targets, *host, "-Xcompiler", "-fPIC", "-shared", "-cudart", "shared"]
        done = subprocess.run(
            [*command, str(source), "-o", str(Path(folder, "probe.so"))], capture_output=True, text=True, check=False
        )
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    telling = [line for line in lines if re.search("error|fatal|cannot|unsupported", line, re.IGNORECASE)]
    return f"the toolkit in {home} does not compile a small kernel: {(telling or lines or ['no message'])[0]}"


def cuda_archs() -> str | None:
    """Compute capabilities to build the CUDA part for, or None to leave it out."""
    asked = asked_archs()
    if switched_on("ANDFAST_CPU_ONLY") or not sources("*.cu"):
        return None
    import torch  # noqa: PLC0415

    if torch.version.cuda is None:
        lacking = f"torch {torch.__version__} is a build without CUDA"
    elif not toolkit():
        lacking = "no CUDA toolkit found; set CUDA_HOME"
    else:
        lacking = toolkit_problem(asked or DEFAULT_ARCHS)
    if lacking and asked:
        sys.exit(f"andfast: ANDFAST_CUDA_ARCHS={asked!r} asks for the CUDA part: {lacking}")
    if lacking:
        print(f"andfast: building the CPU part only: {lacking}", file=sys.stderr)
        return None
    if re.search(r"9\.0(?!a)", asked):
        print("andfast: building for 9.0a in place of 9.0", file=sys.stderr)
    # PTX of 9.0 stays, as there is none of 9.0a that newer devices would take.
    return re.sub(r"9\.0(?!a)(?!\+PTX)", "9.0a", asked.replace("9.0+PTX", "9.0a;9.0+PTX")) or DEFAULT_ARCHS


def arch_macro(archs: str) -> tuple[str, str]:
    """The definition that tells the sources what they are compiled for; semicolons would end a shell command."""
    return "ANDFAST_CUDA_ARCHS", archs.replace(";", ":")


def stable_extension(kind: Any, archs: str | None) -> Any:
    """andfast._ops, a shared library that torch.ops.load_library loads; of the CPU part only without ``archs``."""
    if archs is None:
        files, macros = ["csrc/blur_pool/cpu.cpp", "csrc/blur_pool/ops.cpp"], []
    else:
        files = [name for name in sources("*.cpp") + sources("*.cu") if name != BINDINGS]
        macros = [arch_macro(archs), ("USE_CUDA", None)]
    return kind(
        "andfast._ops",
        files,
        depends=sources("*.h") + sources("*.cuh"),
        define_macros=[*macros, ("TORCH_TARGET_VERSION", STABLE_ABI)],
        py_limited_api=True,  # no symbol of Python's is used at all
        extra_compile_args={"cxx": [*CXX_FLAGS]} | ({} if archs is None else {"nvcc": [*NVCC_FLAGS]}),
        extra_link_args=["-s"],
    )


def query_extension(archs: str | None, include_dirs: list[str]) -> Any:
    """andfast._C. torch only lends its copy of pybind11's headers, nothing of it is linked."""
    return Extension(
        "andfast._C",
        [BINDINGS],
        depends=sources("*.h"),
        define_macros=[] if archs is None else [arch_macro(archs)],
        include_dirs=include_dirs,
        extra_compile_args=[*CXX_FLAGS],
        extra_link_args=["-s"],
        language="c++",
    )


class CopyOps(build_ext):
    """Copies the andfast._ops of ANDFAST_PREBUILT_OPS instead of compiling it."""

    def build_extension(self, ext: Any) -> None:
        if ext.name != "andfast._ops":
            super().build_extension(ext)
            return
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(prebuilt_ops()), target)


def prebuilt_extension() -> dict[str, Any]:
    """The arguments to setup() that package a compiled andfast._ops and build andfast._C."""
    return {
        "ext_modules": [
            Extension("andfast._ops", [], py_limited_api=True),
            query_extension(asked_archs() or None, include_dirs=[]),
        ],
        "cmdclass": {"build_ext": CopyOps},
        "options": {"build": {"build_base": "build/prebuilt"}},
    }


def extension() -> dict[str, Any]:
    """The arguments to setup() that build the extension."""
    if prebuilt_ops() is not None:
        return prebuilt_extension()
    archs = cuda_archs()
    import torch  # noqa: PLC0415
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: PLC0415

    if archs is not None:
        os.environ["TORCH_CUDA_ARCH_LIST"] = archs
    kind = CppExtension if archs is None else CUDAExtension
    return {
        "ext_modules": [
            stable_extension(kind, archs),
            query_extension(archs, [str(Path(torch.__file__).parent / "include")]),
        ],
        "cmdclass": {"build_ext": BuildExtension},
        # Objects compiled against one torch, or without CUDA, must not be linked for another.
        "options": {"build": {"build_base": f"build/torch-{torch.__version__}{'-cpu' if archs is None else ''}"}},
    }


def arguments() -> dict[str, Any]:
    """The arguments to setup() that pyproject.toml does not hold."""
    if not (ROOT / "andfast" / "kernels" / "__init__.py").is_file():
        sys.exit("andfast: andfast/kernels must be a link to ../kernels (a checkout without symbolic links lacks it)")
    switches = {name: switched_on(name) for name in ("ANDFAST_CPU_ONLY", "ANDFAST_REQUIRE_EXT")}  # all checked
    asked, required = asked_archs(), switches["ANDFAST_REQUIRE_EXT"]
    reason = missing()
    if reason is None:
        return extension()
    if required or asked:
        switch = "ANDFAST_REQUIRE_EXT=1" if required else f"ANDFAST_CUDA_ARCHS={asked!r}"
        sys.exit(f"andfast: {switch}, and the extension cannot be built: {reason}")
    print(f"andfast: WARNING: installing without the compiled extension: {reason}", file=sys.stderr)
    return {}


setup(**arguments())
