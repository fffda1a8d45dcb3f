# Every target makes its own environment; nothing needs to be installed before.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow test-faults test-gpu bench lint format clean

demo: $(READY)
	$(BIN)/latentfuse run --config configs/demo.yaml

test: $(READY)
	$(BIN)/pytest -m "not slow and not faults and not gpu"

test-slow: $(READY)
	$(BIN)/pytest -m slow

# Kill -9, full disks, lost ranks and lost nodes, by the hundred.
test-faults: $(READY)
	$(BIN)/pytest -m faults -rs

test-gpu: $(READY)
	$(BIN)/pytest -m gpu -rs

# Images per second of both stages at the demo's size.
bench: $(READY)
	$(BIN)/latentfuse bench step --config configs/demo.yaml

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs/demo

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@
