#!/usr/bin/env bash
# Answers what a GPU has to answer (README.md beside this file), what matters most first. A failed part stops no other.
#
#     bash benchmarks/gpu_session.sh FOLDER [PART...]
#
# FOLDER gets a folder per part and its log. Parts: tests, convolution, step, profile, tune, compiled, ops; all, in
# this order and in 13 minutes at most, if none is named. PYTHON names the interpreter: .venv's if there is one, else
# python3. GPU_CHECK_ARGS is added to the parts of benchmarks.gpu_check: "--allow-cpu --quick" tries them without a GPU.
set -uo pipefail
cd "$(dirname "$0")/.."

all="tests convolution step profile tune compiled ops"
if [ $# -eq 0 ]; then
  echo "usage: bash benchmarks/gpu_session.sh FOLDER [PART...]; parts: $all" >&2
  exit 2
fi
folder=$1
shift
[ $# -gt 0 ] || set -- $all
for name in "$@"; do
  [[ " $all " == *" $name "* ]] || { echo "PART must be one of $all, was $name" >&2; exit 2; }
done
mkdir -p "$folder" || exit 1
out=$(cd "$folder" && pwd)
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=$(command -v "${PYTHON:-python3}") || { echo "no Python: set PYTHON" >&2; exit 1; }
read -ra check <<<"${GPU_CHECK_ARGS:-}"
failed=()

# part NAME SECONDS ARGUMENTS...: run Python with a limit; its output goes to the terminal as it comes, and to a file.
part() {
  local name=$1 limit=$2 status
  shift 2
  echo "== $name: at most $limit s"
  mkdir -p "$out/$name"
  PYTHONUNBUFFERED=1 timeout --kill-after=10 "$limit" "$python" "$@" 2>&1 | tee "$out/$name.log"
  status=${PIPESTATUS[0]}
  echo "== $name: exit status $status"
  [ "$status" -eq 0 ] || failed+=("$name ($status)")
}

# gpu_check NAME SECONDS: a part of benchmarks.gpu_check, which stops by itself within its budget.
gpu_check() {
  part "$1" $(($2 + 15)) -m benchmarks.gpu_check --part "$1" --budget "$2" --output "$out/$1" ${check[@]+"${check[@]}"}
}

for name in "$@"; do
  case $name in
    tests) gpu_check tests 180 ;;
    convolution) part convolution 70 -m benchmarks.convolution_check --json "$out/convolution/convolution.json" ;;
    step) gpu_check step 150 ;;
    profile) gpu_check profile 45 ;;
    tune) gpu_check tune 90 ;;
    compiled)
      part compiled 70 -m pytest benchmarks/suites/test_step.py -W default -k "compiled and net and full" \
        --benchmark-json "$out/compiled/compiled.json"
      ;;
    ops) gpu_check ops 90 ;;
  esac
done
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
