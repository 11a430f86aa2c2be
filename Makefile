# The commands of the README. `make train` and `make test` set up .venv on first use and reuse it after.
.PHONY: help setup train check test lint docs lock clean

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
TORCH := torch==2.13.0+cpu
# The CPU build of torch comes from PyTorch's own index, unless pip already knows a wheel of it.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
LOCK_TORCH ?= --extra-index-url $(TORCH_INDEX) --index-strategy unsafe-best-match

help:
	@echo "make train   train the built-in model on this machine (8 steps, under 10 minutes)"
	@echo "make test    run all tests        make check  lint and unit tests"
	@echo "make lint    ruff and pyright"
	@echo "make docs    the pages of docs/ as a searchable site in build/docs"
	@echo "make setup   make .venv           make lock   resolve requirements/cpu.lock anew"

setup: $(VENV)/.ready

$(VENV)/.ready: requirements/cpu.lock pyproject.toml
	@echo "[1/5] $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@echo "[2/5] $(TORCH)"
	@$(BIN)/python -m pip install --quiet --no-deps $(TORCH) 2>/dev/null \
		|| $(BIN)/python -m pip install --quiet --no-deps $(TORCH) --index-url $(TORCH_INDEX)
	@echo "[3/5] requirements/cpu.lock: $$(grep -c == requirements/cpu.lock) packages, 3.5 GB, a few minutes"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements/cpu.lock
	@echo "[4/5] perm_ray"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@echo "[5/5] the built-in model"
	@$(BIN)/python -m perm_ray.models.resolve
	@touch $@

train: setup
	@$(BIN)/perm-ray train $(ARGS)

check: lint
	@$(BIN)/python -m pytest tests/unit $(ARGS)

test: setup
	@$(BIN)/python -m pytest $(ARGS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

docs:
	@test -x build/venv/bin/sphinx-build || { $(PYTHON) -m venv build/venv \
		&& build/venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/docs.lock; }
	@build/venv/bin/sphinx-build --quiet --fail-on-warning -b html docs build/docs
	@echo "build/docs/index.html"

lock:
	@uv pip compile --quiet requirements/docs.in --python-version 3.11 --generate-hashes --no-header -o requirements/docs.lock
	@uv pip compile --quiet pyproject.toml --extra cpu --extra dev --python-version 3.11 \
		--override requirements/overrides.txt $(LOCK_TORCH) --generate-hashes \
		--no-emit-package torch --no-header -o requirements/cpu.lock

clean:
	rm -rf $(VENV) build runs
