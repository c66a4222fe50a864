# make help lists the targets. PYTHON=/path/to/python3.11 selects the interpreter, JOBS the number of test processes.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup setup-newest demo check test faults test-newest bench gpu-check roofline docs-results wheel test-wheel clean

JOBS ?= 2
PYTEST_ARGS ?=
GPU_CHECK_ARGS ?=
# Without files that train whole runs for seconds each; make test has them.
CHECKED ?= tests/adversary tests/config tests/training tests/nn tests/project/test_language.py \
	$(addprefix --ignore=tests/training/test_,target_psnr.py run_stops.py run_data.py schedule.py)
# What another torch or Triton can break: not parsing, files, drawing and reports, and not csrc/convolution by itself.
NEWEST ?= tests/adversary tests/inference tests/losses tests/metrics tests/nn tests/ops tests/training tests/data/test_loader.py \
	$(addprefix tests/commands/test_,calibrate.py degrade.py demo.py doctor.py evaluate.py export.py prepare.py upscale.py) \
	--ignore-glob='*_emulator.py' --ignore-glob='*mma_compile.py'
FAULTS_ARGS ?=
ROOFLINE_ARGS ?=
# The tests of a file share a process, so that its fixtures train and compile once; files keep their order, short ones last.
PARALLEL = -n $(JOBS) --dist loadfile --no-loadscope-reorder
export PYTHON
# pip compiles no bytecode (.ci/setup.sh); if it were not kept, each of the tests' processes would compile torch's, 4 s.
unexport PYTHONDONTWRITEBYTECODE

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## create .venv with pinned packages and build the extension
	@bash .ci/setup.sh .venv requirements/reference.txt editable

setup-newest: setup
	@bash .ci/setup.sh .venv-newest requirements/newest.txt copy

demo: setup ## train both stages on scikit-image's photographs; results in runs/demo
	.venv/bin/python -m andfast.demo --overwrite

check: setup ## lint, types and about a minute of tests, for the working day
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest --benchmark-disable -q $(PARALLEL) -m "not slow and not gpu" $(CHECKED) $(PYTEST_ARGS)

test: export ANDFAST_REQUIRE_EXT = 1
test: setup ## all tests that this machine can run
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest --benchmark-disable $(PARALLEL) $(PYTEST_ARGS)

faults: setup ## kill, fill, signal and damage tiny runs, 200 kills among them; continues if stopped; FAULTS_ARGS="--kills 50"
	OMP_NUM_THREADS=1 .venv/bin/python tests/faults/campaign.py --jobs $(JOBS) $(FAULTS_ARGS)

# PYTHONSAFEPATH keeps the checkout, whose extension is built for the other torch, off the path.
test-newest: setup-newest ## fast tests of what depends on torch, with the newest that is supported, in .venv-newest
	OMP_NUM_THREADS=1 PYTHONSAFEPATH=1 .venv-newest/bin/python -m pytest --benchmark-disable $(PARALLEL) -m "not slow and not gpu" $(NEWEST) $(PYTEST_ARGS)

bench: setup ## run the benchmarks; rows, tables and a picture in runs/benchmarks.*
	@mkdir -p runs
	.venv/bin/python -m pytest benchmarks --benchmark-group-by=group --benchmark-columns=min,median,ops \
		--benchmark-json=runs/benchmarks.json $(PYTEST_ARGS)
	.venv/bin/python -m benchmarks.report runs/benchmarks.json --markdown runs/benchmarks.md \
		--figure runs/benchmarks.png

# Without .venv an interpreter whose torch has CUDA will do, as on a machine without a network.
gpu-check: ## build, test, measure and profile on a GPU, at most 5 minutes; GPU_CHECK_ARGS="--part tests"
	@if [ -x .venv/bin/python ]; then python=.venv/bin/python; \
	elif $${PYTHON:-python3} -c 'import sys, torch; sys.exit(torch.version.cuda is None)' 2>/dev/null; \
	then python=$${PYTHON:-python3}; \
	else $(MAKE) --no-print-directory setup && python=.venv/bin/python || exit 1; fi; \
	"$$python" -m benchmarks.gpu_check $(GPU_CHECK_ARGS)

roofline: ## floors of the ops and of a step for this GPU or a named one; ROOFLINE_ARGS="--device A100"
	@python=.venv/bin/python; [ -x $$python ] || python=$${PYTHON:-python3}; \
	$$python -m benchmarks.roofline $(ROOFLINE_ARGS)

docs-results: ## docs/results.md and README's table from benchmarks/results/
	@python=.venv/bin/python; [ -x $$python ] || python=$${PYTHON:-python3}; $$python -m benchmarks.report --docs

wheel: setup ## manylinux wheels in dist/, of all Pythons on the PATH or pyenv's (PYTHONS); ANDFAST_CPU_ONLY=1 without CUDA
	@bash .ci/wheel.sh .venv

# The wheels of one Python, PYTHON's or else python3.11's. Two environments, one after the other, minutes each;
# .ci/test-wheel.sh can keep one (TEST_VENV).
test-wheel: ## install wheels of dist/ into empty environments, oldest and newest torch, and run the fast tests
	@tag=$$($${PYTHON:-python3.11} -c 'import sys; print("cp%d%d" % sys.version_info[:2])') && \
	for torch in reference newest; do \
		PYTEST_ARGS="$(PYTEST_ARGS)" JOBS=$(JOBS) bash .ci/test-wheel.sh requirements/$$torch.txt dist/andfast-*-$$tag-*.whl || exit 1; \
	done

clean: ## remove build products and environments; keeps runs/
	rm -rf .venv .venv-newest build dist *.egg-info andfast/_C.*.so andfast/_ops.*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
