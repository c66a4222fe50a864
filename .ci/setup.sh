#!/usr/bin/env bash
# Makes a virtual environment in the checkout, installs pinned requirements and builds andfast into it.
#
#     .ci/setup.sh VENV REQUIREMENTS editable|copy|packages
#
# "editable" builds the extension in place. "copy" installs a copy for another torch, with the checkout's andfast._ops, which
# serves every torch, as the wheels do. "packages" installs the requirements only. Nothing is done that is done already: a
# stamp in VENV holds the hash of what went in. An environment without its stamp was left half-built and is made anew.
# Nothing is installed outside of VENV.
#
# PYTHON names the interpreter to use; ANDFAST_MIN_DISK_GB (12) the free space asked for before packages are installed.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$1 requirements=$2 mode=$3
python=$venv/bin/python
log=$venv/setup.log

say() { printf 'andfast: %s\n' "$*"; }
die() { printf 'andfast: error: %s\n' "$*" >&2; exit 1; }

suits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; }

version_of() { "$1" --version 2>/dev/null | head -n 1 | grep . || echo "nothing that runs"; }

find_python() {
  local name
  if [ -n "${PYTHON:-}" ]; then
    suits "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.11, 3.12 or 3.13, but $(version_of "$PYTHON")"
    command -v "$PYTHON"
    return
  fi
  for name in python3.11 python3.12 python3 python3.13 python; do
    if suits "$name"; then
      command -v "$name"
      return
    fi
  done
  die "no Python 3.11, 3.12 or 3.13 on the PATH (python3 is $(version_of python3));" \
    "install one, or name it: make PYTHON=/path/to/python3.11"
}

find_uv() {
  if command -v uv >/dev/null 2>&1; then uv="uv"; elif "$1" -m uv --version >/dev/null 2>&1; then uv="$1 -m uv"; else uv=""; fi
}

# Runs an installer, keeps what it prints, and turns a failure into one clear line below it.
run() {
  if ! "$@" 2>&1 | tee -a "$log"; then
    if grep -qiE 'no space left on device|disk quota exceeded|os error 28' "$log" || [ "$(free_mb)" -lt 200 ]; then
      die "the disk is full: $(free_mb) MB are left for $PWD/$venv; free some space and run make again"
    fi
    die "setting up $venv failed, see the lines above (or $log); run make again to go on"
  fi
}

free_mb() { df -Pm . | awk 'NR == 2 { print $4 }'; }

install() {  # pip's arguments follow
  : >"$log"
  if [ -n "$uv" ]; then
    run $uv pip install --python "$python" "$@"
  else
    "$python" -m pip --version >/dev/null 2>&1 || run "$python" -m ensurepip
    # Bytecode of 11,000 modules takes half a minute; those that are used are compiled when they are imported.
    run "$python" -m pip install --disable-pip-version-check --no-compile "$@"
  fi
}

hash_of() { sha256sum | cut -d ' ' -f 1; }

hash_requirements() {
  { cat requirements/common.txt "$requirements"; "$python" -VV; } | hash_of
}

hash_sources() {
  local files=(setup.py pyproject.toml MANIFEST.in andfast/__init__.py "$venv/requirements.stamp")
  { find csrc -type f | sort | xargs cat "${files[@]}"
    [ "$mode" = editable ] || find andfast kernels -name '*.py' -o -path andfast/_ops.abi3.so | sort | xargs cat
  } | hash_of
}

[ "$(printf '%s' "$PWD" | tr -d '[:space:]')" = "$PWD" ] || die "the checkout's path must not contain spaces: $PWD"
# Without a compiler ops run their reference implementations; ANDFAST_REQUIRE_EXT=1, as make test sets it, is an error.
compiler=${CXX:-c++} lacking=
if ! command -v "${compiler##* }" >/dev/null 2>&1; then
  lacking="no C++ compiler: $compiler is not on the PATH; install g++ (Debian, Ubuntu: apt-get install g++) or set CXX"
fi

# An interpreter that moved or vanished, or an install that did not come to its end.
if [ -e "$venv" ] && { ! suits "$python" || [ ! -s "$venv/requirements.stamp" ]; }; then
  say "$venv is broken or half-built: making it anew"
  rm -rf "$venv"
fi

if [ ! -e "$venv" ]; then
  base=$(find_python)
  [ "$(free_mb)" -ge $((${ANDFAST_MIN_DISK_GB:-12} * 1024)) ] ||
    die "not enough disk space: $venv needs about ${ANDFAST_MIN_DISK_GB:-12} GB while it is made, $(free_mb) MB are free in $PWD"
  find_uv "$base"
  say "making $venv with $("$base" --version)"
  if [ -n "$uv" ]; then
    $uv venv --quiet --python "$base" "$venv" || die "uv could not make $venv"
  else
    "$base" -m venv "$venv" >/dev/null || die "$base has no working venv module (Debian, Ubuntu: apt-get install python3-venv)"
  fi
else
  find_uv "$python"
fi

wanted=$(hash_requirements)
if [ "$(cat "$venv/requirements.stamp" 2>/dev/null)" != "$wanted" ]; then
  rm -f "$venv/requirements.stamp" "$venv/sources.stamp"
  say "installing $requirements into $venv"
  install -r "$requirements"
  echo "$wanted" >"$venv/requirements.stamp"
fi

[ "$mode" != packages ] || exit 0

[ -n "$lacking" ] ||
  "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
  lacking="Python.h is missing for $python; install its headers (Debian, Ubuntu: apt-get install python3-dev)"
if [ -n "$lacking" ]; then
  [ "${ANDFAST_REQUIRE_EXT:-0}" != 1 ] || die "$lacking"
  say "going on without the extension: $lacking"
fi

wanted=$(hash_sources)
built() { [ "$mode" = copy ] || { compgen -G 'andfast/_C.*.so' && [ -e andfast/_ops.abi3.so ]; } >/dev/null; }
if [ -n "$lacking" ]; then
  installed() { (cd "$venv" && bin/python -c 'import andfast') >/dev/null 2>&1; }
  installed || ANDFAST_REQUIRE_EXT=0 CXX=none install --no-build-isolation --no-deps $([ "$mode" = copy ] || echo -e) .
elif [ "$(cat "$venv/sources.stamp" 2>/dev/null)" != "$wanted" ] || ! built; then
  rm -f "$venv/sources.stamp"
  say "building andfast's extension"
  export ANDFAST_REQUIRE_EXT=1 PATH="$PWD/$venv/bin:$PATH"  # the environment's ninja
  again=(--force-reinstall)
  [ -z "$uv" ] || again=(--reinstall-package andfast)
  if [ "$mode" = editable ]; then
    install --no-build-isolation --no-deps "${again[@]}" -e .
  else
    rm -rf build/prebuilt
    archs=$(cd andfast && ../.venv/bin/python -c 'import _C; print(_C.CUDA_ARCHS.replace(":", ";"))')
    CPLUS_INCLUDE_PATH=$("$python" -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "include"))')
    export CPLUS_INCLUDE_PATH  # pybind11's headers
    export ANDFAST_PREBUILT_OPS=$PWD/andfast/_ops.abi3.so ANDFAST_CUDA_ARCHS=$archs
    install --no-build-isolation --no-deps "${again[@]}" .
  fi
  (cd "$venv" && bin/python -c 'import sys, andfast._C; from andfast.functional import extension; sys.exit(extension.why_missing())') ||
    die "the extension was built but does not load"
  echo "$wanted" >"$venv/sources.stamp"
fi
