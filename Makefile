# The developer's manual. On a fresh machine with Python 3.11+ and its headers, make and a C++17 compiler: `make demo`,
# `make test`. Without the compiler or the headers they work, too, on the reference backend.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
JOBS ?= 2
export PYTHONUNBUFFERED := 1

.PHONY: help demo test check format lint types clean
help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-19s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip uninstall --quiet --quiet --yes sparcl  # the distribution's name until 0.2.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -c "from sparcl import kernels; print(kernels.why_unavailable() or 'the compiled part is built')"
	touch $@

install: $(READY)  ## environment with everything that developers need, the compiled part built

demo: $(READY)  ## train SparCL-DER++ and dense DER++ on embedded digits, side by side (no network, under two minutes)
	rm -rf runs/demo
	$(BIN)/sparcl run seq-digits --method derpp --sparsifier dense --out runs/demo/dense
	$(BIN)/sparcl run seq-digits --method derpp --sparsity 0.90 --out runs/demo/sparcl
	$(BIN)/sparcl report runs/demo
	$(BIN)/sparcl report runs/demo --format html --out runs/demo/report.html

test: $(READY)  ## all tests but those marked slow, two files at a time (JOBS=2)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

check: $(READY) format lint types test  ## what CI runs: format, lint, types, tests

format: $(READY)
	$(BIN)/ruff format --check .

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

clean:  ## remove the environment, builds and caches
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache

-include docs.mk
-include csrc/portability.mk
-include csrc/devices.mk
-include tests/arm/arm.mk
-include tests/robustness/robustness.mk
-include tests/slurm/slurm.mk
-include tests/fresh/fresh.mk
-include experiments/experiments.mk
