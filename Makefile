# From a bare machine with git, make and Python 3.11 or newer; every target sets up what it needs first.
PYTHON ?= python3
UV_VERSION := 0.13.8

BIN := .venv/bin
UV := .venv/.uv-$(UV_VERSION)
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format lock

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Install everything into .venv, exactly as locked

demo: $(READY) ## Run the whole loop on a synthetic product
	$(BIN)/ssad demo

test: $(READY) ## Run all tests, on the CPU
	$(BIN)/pytest

check: $(READY) ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY) ## Put the sources into their format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(UV) ## Lock anew after a change of the dependencies, keeping the versions that still fit
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
		--group dev pyproject.toml -o requirements.lock

# The package itself is installed last, because the sync takes out whatever the lock does not name; its build backend
# is locked like everything else, hence no isolation.
$(READY): $(UV) requirements.lock pyproject.toml
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

$(UV):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	touch $@
