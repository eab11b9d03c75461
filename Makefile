# make reproduce   the whole study on the profile PROFILE (default: nano), then where its report lies
# make help        everything else

SHELL := /bin/bash
.DEFAULT_GOAL := help

PROFILE ?= nano
# the folder under runs/
RUN ?= $(basename $(notdir $(PROFILE)))
# the first Python on the PATH that is new enough; 3.11 comes first because the pins were tried with it
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell $(name) -c $(NEW_ENOUGH) 2>/dev/null && echo $(name))) python3)
# another wheel index for torch alone, such as PyTorch's own for CPU builds
TORCH_INDEX ?=

NEW_ENOUGH := 'import sys; sys.exit(sys.version_info < (3, 11))'
VENV := .venv
STAMP := $(VENV)/installed
TORCH := $(shell sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
STUDY := $(VENV)/bin/python -m personavlm_lib

.PHONY: reproduce test figures explore backbone lint clean help

reproduce: $(STAMP)  ## run the whole study on a profile: PROFILE=nano (default) or smoke
	@$(STUDY) reproduce --profile $(PROFILE) --run $(RUN)

test: $(STAMP)  ## unit tests, then every notebook on the smoke profile
	@set -o pipefail; $(VENV)/bin/python -m pytest -q | tee $(VENV)/pytest.txt
	@$(STUDY) reproduce --profile smoke --force
	@echo "All notebooks ran. The unit tests:"; tail -n 1 $(VENV)/pytest.txt

figures: $(STAMP)  ## draw figures/ anew from results/reference/
	@$(STUDY) figures

explore: $(STAMP)  ## open the memories of a finished run in JupyterLab
	@$(VENV)/bin/jupyter lab notebooks/explore_memories.ipynb

backbone: $(STAMP)  ## make the kept nano backbone in results/backbone/ anew
	@$(STUDY) run 00_backbone --profile nano --run backbone --set recipe=train

lint: $(STAMP)  ## ruff: rules and format
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

clean:  ## remove runs/ and caches; the environment stays
	@rm -rf runs .snakemake .pytest_cache .ruff_cache
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml
	@$(PYTHON) -c $(NEW_ENOUGH) 2>/dev/null || { echo "Python 3.11 or newer is needed, '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name another one: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing the environment in $(VENV) (once, some minutes)"
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@$(PIP) --editable ".[dev]"
	@touch $@
