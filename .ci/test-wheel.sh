#!/usr/bin/env bash
# Installs wheels into an empty environment, one after the other, and runs the fast tests on each from outside of the checkout.
#
#     .ci/test-wheel.sh REQUIREMENTS WHEEL...
#
# REQUIREMENTS, requirements/reference.txt or newest.txt, gives torch. The wheels must be of one Python: PYTHON, or the one of
# that version on the PATH. PYTEST_ARGS goes to pytest; WHEEL_TESTS names what to test ("tests", without those of the
# checkout's own files and benchmarks), JOBS the number of processes. The environment and the copies are deleted at the end;
# 12 GB of disk. TEST_VENV names a folder to keep the environment in: a later call with the same REQUIREMENTS starts at once.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'andfast: %s\n' "$*"; }
die() { printf 'andfast: error: %s\n' "$*" >&2; exit 1; }

[ $# -ge 2 ] || die "usage: .ci/test-wheel.sh REQUIREMENTS WHEEL..."
requirements=$1
shift
for wheel in "$@"; do
  [ -f "$wheel" ] || die "$wheel is no file; make wheel builds wheels into dist/"
done
version=$(basename "$1" | sed -nE 's/^andfast-[^-]+-cp3([0-9]+)-.*\.whl$/3.\1/p')
[ -n "$version" ] || die "$1 is not a wheel of andfast"
venv=${TEST_VENV:+$(realpath -m "$TEST_VENV")}
base=${PYTHON:-python$version}
[ -z "$venv" ] || [ ! -x "$venv/bin/python" ] || base=$venv/bin/python
[ "$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$version" ] ||
  die "$(basename "$1") needs Python $version, $base is not that; set PYTHON"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${venv:-$work/venv}
python=$venv/bin/python
if [ ! -x "$python" ]; then
  mkdir -p "$venv"
  [ "$(df -Pm "$venv" | awk 'NR == 2 { print $4 }')" -ge 12288 ] ||
    die "$venv needs 12 GB of disk; set TMPDIR, or TEST_VENV, to another folder"
  "$base" -m venv "$venv"
fi
say "installing $requirements for Python $version"
"$python" -m pip install --quiet --disable-pip-version-check -r "$requirements"

# The tests and the files that they read, without the package and its kernels.
mkdir "$work/outside"
cp -r tests csrc configs examples docs benchmarks pyproject.toml README.md "$work/outside"

read -ra tests <<<"${WHEEL_TESTS:-tests --ignore=tests/project --ignore=tests/benchmarks}"
for wheel in "$@"; do
  say "testing $(basename "$wheel")"
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall "$wheel"
  (
    cd "$work/outside"
    export PYTHONSAFEPATH=1 OMP_NUM_THREADS=1 PATH="$venv/bin:$PATH"
    python -c '
import sys, torch, andfast
from andfast.functional import extension
assert andfast.__file__.startswith(sys.prefix), andfast.__file__
assert extension.why_missing() is None, extension.why_missing()
archs = extension.cuda_archs() or "none"
print(f"andfast: {andfast.__file__}, Python {sys.version.split()[0]}, torch {torch.__version__}, CUDA code: {archs}")'
    # shellcheck disable=SC2086 # a list of options
    python -m pytest --benchmark-disable -q -n "${JOBS:-2}" -m "not slow and not gpu" "${tests[@]}" ${PYTEST_ARGS:-}
  )
done
