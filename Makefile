# Every target works on a fresh machine with Python 3.11 or 3.12: the first one makes .venv with the tested, pinned set.
#   make demo     train the embedded default: DPO, about three minutes on two cores, offline
#   make test     every test
# pip's own variables (PIP_INDEX_URL, PIP_FIND_LINKS, ...) choose where packages come from.

VENV ?= .venv
PYTHON ?= $(shell for python in python3.11 python3.12 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& echo $$python && break; done)
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-oldest format lint type docs bench lock clean

help:
	@sed -n 's/^#   //p' Makefile
	@echo "others: test-slow test-oldest format lint type docs bench lock clean"

# torch stands alone: which build it is, and whether it brings CUDA, is for the machine to say.
$(INSTALLED): pyproject.toml requirements/lock.txt
	@test -n "$(PYTHON)" || { echo "needs python3.11 or python3.12; or say: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet torch==2.13.0
	$(PIP) install --quiet --requirement requirements/lock.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python -m lit_rlhf fit --config configs/dpo.yaml

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS)

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest --slow -n $(WORKERS)

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/validate-pyproject pyproject.toml

type: $(INSTALLED)
	$(BIN)/mypy

docs: $(INSTALLED)
	$(BIN)/python -m pytest tests/test_readme.py tests/test_docs.py

bench: $(INSTALLED)
	$(BIN)/python benchmarks/dpo.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
