# make demo: install and run the embedded default.   make test: the checks.   make help: the rest.
PYTHON ?= python3
VENV ?= .venv
CORES ?= all
WORKERS ?= 2
DEVICE ?= cuda
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-slurm test-faults test-browser lint checks format bench bench-gpu docs docs-numbers clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 18
	@echo "Variables: PYTHON (3.11 or newer), CORES ($(CORES)), WORKERS of the tests ($(WORKERS)), VENV ($(VENV))"

install: $(STAMP) ## create the virtual environment from the pinned requirements

# torch comes first and alone, so that a CPU build already at hand is taken.
$(STAMP): envs/requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is older than Python 3.11; set another one: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' envs/requirements.lock)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r envs/requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

demo: $(STAMP) ## run the default workflow and print where the report is
	$(BIN)/snakemake --cores $(CORES) --resources gpu=1
	@echo "The report: $(CURDIR)/results/report/index.html"

# A file's tests stay on one worker, which makes their shared fixtures once; those that run the workflow come first.
PYTEST = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q --ignore=tests/slurm --ignore=tests/faults \
  --ignore=tests/browser -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: checks ## the everyday test suite, lint included
	$(PYTEST) -m "not slow"

test-slow: $(STAMP) ## tests that run workflows to their end, kill some on the way, and measure the embedded models
	$(PYTEST) -m slow

test-slurm: $(VENV)-slurm/.installed ## real runs on a one-node SLURM that is started for it (needs root and Debian's SLURM packages)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONPATH=$(abspath $(VENV)-slurm) \
	  $(BIN)/python -m pytest -q --durations=0 --durations-min=1 tests/slurm

# The executor alone, beside $(VENV): Snakemake imports every executor that it finds, in every job.
$(VENV)-slurm/.installed: envs/slurm.txt $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)-slurm -r envs/slurm.txt
	@touch $@

test-faults: $(STAMP) ## kills, damage, full disks: FAULTS=short (default, 3 minutes) or full (20 minutes), FAULTS_SEED=N
	$(BIN)/python -m pytest -q tests/faults

# Elsewhere than under a temporary folder, as these pictures are there to be looked at.
test-browser: $(STAMP) ## the atlas in a real browser (needs chromium), with screenshots in results/screenshots
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r envs/browser.txt
	SCREENSHOTS=results/screenshots $(BIN)/python -m pytest -q -rs tests/browser

lint: checks ## snakemake --lint, snakefmt, ruff, rule hygiene, generated files
	$(BIN)/python -m pytest -q tests/workflow/test_hygiene.py

checks: $(STAMP)
	$(BIN)/snakemake --lint
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mechatlas.config_docs --check

format: $(STAMP) ## format Python and Snakemake files
	$(BIN)/snakefmt Snakefile workflow
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## benchmarks against a bare forward pass, as a table and as JSON
	$(BIN)/python benchmarks/run.py

bench-gpu: $(STAMP) ## the numerical stages on a GPU (needs a CUDA build of torch; DEVICE=cuda:1 chooses one)
	$(BIN)/python benchmarks/run.py --device $(DEVICE)

docs: $(VENV)-docs/.installed ## build the documentation into site/ (an environment of its own)
	$(VENV)-docs/bin/mkdocs build --strict

$(VENV)-docs/.installed: envs/docs.txt
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check -r envs/docs.txt
	@touch $@

docs-numbers: $(STAMP) ## write the numbers of a finished default run into README and tutorial
	$(BIN)/python -m mechatlas.docs_numbers results

clean: ## remove results, logs and caches (the environment and downloads stay)
	rm -rf results logs .pytest_cache .ruff_cache .snakemake
