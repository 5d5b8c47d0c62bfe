# make demo: set up, then synth -> check -> train -> evaluate -> report on this machine (about 8 minutes on two cores)
# make test: set up, then the fast tests       make test-slow: the slow ones       make check: all a contributor runs
# The packages are pinned in constraints.txt. torch is apart because its build depends on the machine:
#   make setup TORCH=torch==2.13.0 TORCH_INDEX=<address of the wheel index for your CUDA or CPU build>
PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup browser demo test test-slow check fix

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Vesalius needs Python 3.11 or newer; this is %s. Set PYTHON=python3.11" % sys.version.split()[0])'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)" $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)")
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# report pages are looked at in a real browser; only root can install one, and without it those tests are skipped
browser:
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && { timeout 200 apt-get install -y -qq chromium || { timeout 60 apt-get update -qq && timeout 200 apt-get install -y -qq chromium; }; } >/dev/null 2>&1; \
	then echo "installed Chromium for the tests of report pages"; \
	else echo "NOTE: no Chromium and no right to install it: the tests of report pages in a browser are skipped"; fi

demo: setup
	$(BIN)/python recipes/demo.py

test: setup browser
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

check: setup browser
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

fix: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
