# `make demo` and `make test` set everything up by themselves: they need make and Python 3.11 or 3.12.
# No root, no GPU, and no network beyond the package registries.

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
UV_VERSION := 0.13.8
OUT ?= out/demo

# OpenAL for the Stage recorder: the system's own, or a private copy beside the environment.
OPENAL := $(CURDIR)/$(VENV)/openal/lib
export LD_LIBRARY_PATH := $(OPENAL)$(if $(LD_LIBRARY_PATH),:$(LD_LIBRARY_PATH))
# Ultralytics writes its settings here, not into the home folder, and installs nothing by itself.
export YOLO_CONFIG_DIR := $(CURDIR)/$(VENV)/ultralytics
export YOLO_AUTOINSTALL := false
export YOLO_OFFLINE := true
export UV_HTTP_TIMEOUT := 300
export UV_LINK_MODE ?= hardlink

.PHONY: help setup demo test lint format lock clean

help:
	@echo "make demo    dub the clip that ships with the package into $(OUT)"
	@echo "make test    run every test"
	@echo "make lint    check style and formatting;  make format  mends both"
	@echo "make setup   only build the environment in $(VENV)"
	@echo "make lock    resolve the pinned versions anew;  make clean  remove what make built"

setup: $(STAMP)

# --no-deps: the lock is complete, and nothing outside it may come in.
$(STAMP): pyproject.toml requirements.lock training/stage/fetch_openal.sh
	sh .ci/make_venv $(VENV) $(UV_VERSION)
	$(VENV)/bin/uv pip install --python $(PYTHON) --no-deps --compile-bytecode -r requirements.lock
	$(VENV)/bin/uv pip install --python $(PYTHON) --no-deps --no-build-isolation -e .
	$(PYTHON) -m compileall -q spatial_v2a conditioning training inference configs
	mkdir -p $(YOLO_CONFIG_DIR)
	sh training/stage/fetch_openal.sh $(PYTHON) $(OPENAL)
# Without network everything else works: it says in one line how to get the weights later.
	$(VENV)/bin/spatial-v2a detectors get nanodet 2>&1 | sed 's/^error: /note: /'
	touch $(STAMP)

demo: $(STAMP)
	$(VENV)/bin/spatial-v2a demo --out $(OUT) --overwrite

test: $(STAMP)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 $(PYTEST_FLAGS)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Run after changing the dependencies; add `--upgrade` by hand to move every pin.
lock: $(STAMP)
	$(VENV)/bin/uv pip compile pyproject.toml requirements.in --extra cpu --extra train --extra dev \
	  --universal --python-version 3.11 --no-header --no-annotate -o requirements.lock

clean:
	rm -rf $(VENV) build out .pytest_cache .ruff_cache *.egg-info
