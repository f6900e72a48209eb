# Two commands do everything: `make quickstart` and `make test`. Both install into .venv first.
PYTHON ?= python3
BIN := .venv/bin

NUMERIC := tests/models tests/engine/evaluation/test_metrics.py tests/engine/evaluation/test_official_metrics.py
TOOLS := pytest pytest-timeout pytest-xdist hypothesis

.PHONY: help install quickstart test test-numeric test-all test-lowest audit lint types clean

help:
	@echo "make quickstart   install, draw small synthetic sets, train all three stages, evaluate (4 minutes on 2 CPU cores)"
	@echo "make test         install, lint, types, tests (5 to 10 minutes)"
	@echo "make test-all     the same with the longer proofs"
	@echo "make test-lowest  the numeric tests with the oldest packages that pyproject.toml admits, in a .venv-lowest of their own"
	@echo "make audit        look the pinned packages up among known vulnerabilities"
	@echo "make install      only .venv; PYTHON=python3.12 chooses another interpreter"

install: .venv/installed

# uv, itself installed by pip, is five times faster than pip; the pins in constraints.txt make installs repeatable.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: install
	$(BIN)/python -m data.synthetic --root data/synthetic
	$(BIN)/python -m engine.train --stage all --config configs/quickstart.yaml --name quickstart --resume
	$(BIN)/python eval.py --weights runs/quickstart/cls.pt --data_root data/synthetic --tasks all

lint: install
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy data models continual engine eval.py onehead.py scripts

test: lint types test-numeric
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# Vector code rounds differently on each kind of processor: what must be equal is equal on an older one too.
test-numeric: install
	ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(NUMERIC)

test-all: lint types test-numeric
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# The lower bounds of pyproject.toml are kept true: each package in the oldest version that is admitted.
test-lowest: .venv-lowest/installed
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n 2 --dist loadfile -m "not slow" $(NUMERIC)

.venv-lowest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct --editable .
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python $(TOOLS)
	touch $@

audit: install
	$(BIN)/python -m scripts.audit

clean:
	rm -rf .venv .venv-lowest runs/quickstart data/synthetic .mypy_cache .ruff_cache .pytest_cache
