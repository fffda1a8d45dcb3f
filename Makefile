# Every target makes its own environment; nothing needs to be installed before.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WEB := .venv-web
# A worker for each processor, but not so many that tests of several processes stand in each other's way.
PARALLEL := --numprocesses=logical --maxprocesses=4 --dist=worksteal

.PHONY: demo test test-slow test-faults test-gpu test-web mutants bench lint format clean

demo: $(READY)
	$(BIN)/latentfuse run --config configs/demo.yaml

test: $(READY)
	$(BIN)/pytest $(PARALLEL) -m "not slow and not faults and not gpu and not web"

test-slow: $(READY)
	$(BIN)/pytest -m slow

# Kill -9, full disks, lost ranks, lost nodes and hostile inputs, by the hundred; `make test` has one of each kind.
test-faults: $(READY)
	$(BIN)/pytest $(PARALLEL) -m faults -rs

test-gpu: $(READY)
	$(BIN)/pytest -m gpu -rs

# The page in Chromium. Its environment adds the extra `web`, Playwright and npm's onnxruntime-web to the usual one.
test-web: $(WEB)/.ready
	ONNXRUNTIME_WEB=$(WEB)/node_modules/onnxruntime-web $(WEB)/bin/python -m pytest -rs -m web
	$(WEB)/bin/python -m pytest tests/inference/test_web.py

# One-line faults at core places, one at a time, in a copy: names those that no test notices.
mutants: $(READY)
	$(BIN)/python benchmarks/mutants.py

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
	rm -rf $(VENV) $(WEB) runs/demo

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# It finds the packages of the usual environment by a .pth file: torch is not installed twice.
$(WEB)/.ready: $(READY) requirements-web.lock
	$(PYTHON) -m venv $(WEB)
	cd $(WEB)/lib/python3*/site-packages && echo $(CURDIR)/$(VENV)/lib/python3*/site-packages > usual.pth
	$(WEB)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-web.lock
	npm install --silent --ignore-scripts --no-save --prefix $(WEB) onnxruntime-web@$$($(WEB)/bin/python -c \
	  'from pipeline.inference.web import RUNTIME_VERSION as version; print(version)')
	touch $@
