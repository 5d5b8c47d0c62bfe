# make demo: set up, then synth -> check -> train -> evaluate -> report on this machine (about 5 minutes on two cores)
# make test: set up, then the fast tests       make test-slow: the slow ones       make check: all a contributor runs
# make test-lowest: the fast tests with the lowest versions of all dependencies; make test-newest: with the newest ones
# make docs: regenerate docs/settings.md and docs/errors.md
# The packages are pinned in constraints.txt. torch is apart because its build depends on the machine:
#   make setup TORCH=torch==2.13.0 TORCH_INDEX=<address of the wheel index for your CUDA or CPU build>
PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
# BROWSER=0 leaves out installing Chromium and dicom3tools; the tests that need them are then skipped
BROWSER ?= 1
MAY_INSTALL := [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null
SAY := $(MAY_INSTALL) && printf 'installing %s system-wide with apt-get, for the tests; BROWSER=0 leaves it out\n'
VALIDATORS := $(if $(filter 0,$(BROWSER)),,browser dicom-validator)

.PHONY: setup browser dicom-validator demo test test-slow test-lowest test-newest check fix docs

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Vesalius needs Python 3.11 or newer; this is %s. Set PYTHON=python3.11" % sys.version.split()[0])'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)" $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)")
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# report pages are tested in a real browser; only root can install one, and without it those tests are skipped
browser:
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	$(SAY) Chromium; if $(MAY_INSTALL) && { timeout 200 apt-get install -y -qq chromium || { timeout 60 apt-get update -qq && timeout 200 apt-get install -y -qq chromium; }; } >/dev/null 2>&1; \
	then echo "installed Chromium for the tests of report pages"; \
	else echo "NOTE: no Chromium, and it could not be installed: the tests of report pages in a browser are skipped"; fi

# DICOM segmentations are checked by an independent program; without it that test is skipped
dicom-validator:
	@command -v dciodvfy >/dev/null && exit 0; \
	$(SAY) dicom3tools; if $(MAY_INSTALL) && { timeout 200 apt-get install -y -qq dicom3tools || { timeout 60 apt-get update -qq && timeout 200 apt-get install -y -qq dicom3tools; }; } >/dev/null 2>&1; \
	then echo "installed dicom3tools for the test of DICOM segmentations"; \
	else echo "NOTE: no dciodvfy, and it could not be installed: DICOM segmentations are not validated"; fi

demo: setup
	$(BIN)/python recipes/demo.py

test: setup $(VALIDATORS)
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

# 6 GB each: uv takes PyPI's torch, which on Linux is a CUDA build; the tests run on the CPU
test-lowest: RESOLUTION := lowest-direct
test-newest: RESOLUTION := highest
test-lowest test-newest:
	$(PYTHON) -m venv --clear .venv-$(RESOLUTION)
	.venv-$(RESOLUTION)/bin/python -m pip install --quiet uv
	.venv-$(RESOLUTION)/bin/uv pip install --quiet --python .venv-$(RESOLUTION)/bin/python --resolution $(RESOLUTION) --editable '.[test]'
	.venv-$(RESOLUTION)/bin/python -m pytest

check: setup $(VALIDATORS)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

fix: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup
	$(BIN)/python -m vesalius.codes > docs/errors.md
	$(BIN)/python -m vesalius.codes zh > docs/zh/errors.md
	$(BIN)/python docs/settings.py
