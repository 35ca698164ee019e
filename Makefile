# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` need nothing but Python 3.11, pip and make; .venv/ is built on the way.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CREATED := $(VENV)/.created
CORE := $(VENV)/.core-installed
FULL := $(VENV)/.full-installed
DEMO := out/demo

.DEFAULT_GOAL := help
.PHONY: help demo test browser setup lint format bench docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(CORE) ## train a network on embedded digits, compress it, print the table
	$(BIN)/rarefy train zoo:digits-net digits --out $(DEMO)/digits.safetensors
	$(BIN)/rarefy compress zoo:digits-net digits --weights $(DEMO)/digits.safetensors \
		--recipe examples/demo.yaml --out $(DEMO)

test: $(FULL) browser ## the whole suite; ARGS="tests/store -k huffman" chooses
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

browser: ## a Chromium, for the tests that open the report
	@if [ -n "$$RAREFY_CHROMIUM" ] || command -v chromium >/dev/null \
		|| command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; then :; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -qq -y --no-install-recommends chromium >/dev/null; \
	else echo "no Chromium found: install one (Debian: sudo apt-get install chromium)" \
		"or set RAREFY_CHROMIUM to its path" >&2; exit 1; fi

setup: $(FULL) ## the development environment in .venv/

lint: $(FULL) ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(FULL) ## put the code into the formatter's shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(FULL) ## run every benchmark; each prints a table
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

docs: $(FULL) ## the documentation in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict

clean: ## remove what was built; .venv/ and your own results stay
	rm -rf $(DEMO) site build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests examples benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

$(CREATED):
	$(PYTHON) -m venv $(VENV)
	touch $@

# The package is built with the pinned setuptools: no download of a newer one on the side.
$(CORE): requirements.txt pyproject.toml | $(CREATED)
	$(PIP) install --no-compile --constraint requirements.txt setuptools
	$(PIP) install --no-compile --constraint requirements.txt --no-build-isolation --editable .
	touch $@

$(FULL): requirements.txt pyproject.toml | $(CREATED)
	$(PIP) install --no-compile --requirement requirements.txt
	$(PIP) install --no-compile --no-build-isolation --no-deps --editable .
	touch $(CORE) $@
