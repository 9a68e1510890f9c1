# Every target works on a fresh machine with Python 3.11 or 3.12: the first one makes .venv with the tested, pinned set.
#   make demo       train the embedded default: DPO, about three minutes on two cores, offline
#   make pipeline   the whole path: SFT, reward model, DPO and PPO, and one page that compares them, in minutes
#   make test       every test but the slow ones
# pip's own variables (PIP_INDEX_URL, PIP_FIND_LINKS, ...) choose where packages come from.

VENV ?= .venv
PYTHON ?= $(shell for python in python3.11 python3.12 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& echo $$python && break; done)
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check
WORKERS ?= 2
PIPELINE ?= runs/pipeline
TORCH := torch==2.13.0

.DEFAULT_GOAL := help
.PHONY: help demo pipeline test test-slow test-oldest format lint type docs bench soak lock clean

help:
	@sed -n 's/^#   //p' Makefile
	@echo "others: test-slow test-oldest format lint type docs bench soak lock clean"

# The lock holds a hash for every file but torch's: which build of torch a machine gets, and whether it brings CUDA,
# is for that machine to say.
$(INSTALLED): pyproject.toml requirements/lock.txt
	@test -n "$(PYTHON)" || { echo "needs python3.11 or python3.12; if yours has another name: make PYTHON=... "; exit 1; }
	@echo "making $(VENV), once: the tested, pinned set, a few minutes (longer where torch brings CUDA)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --require-hashes --no-deps --requirement requirements/lock.txt
	@echo "  and $(TORCH)"
	@$(PIP) install $(TORCH)
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python -m lit_rlhf fit --config configs/dpo.yaml

# Where it stopped it goes on; PIPELINE=FOLDER is another place.
pipeline: $(INSTALLED)
	$(BIN)/python examples/pipeline.py --folder $(PIPELINE)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS)

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) --slow

# The floors of pyproject.toml, in an environment of their own.
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --constraint requirements/oldest.txt --editable .[dev]
	.venv-oldest/bin/python -m pytest -n $(WORKERS)

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/validate-pyproject pyproject.toml

type: $(INSTALLED)
	$(BIN)/mypy

# The pages under docs/ as a site in site/, and what they promise: links, commands, settings, code, figures.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python -m pytest -n $(WORKERS) tests/test_docs*.py tests/examples tests/test_readme.py

# Beside TRL, which has an environment of its own: make bench TRL=/its/python DATA=/hh/rows.jsonl.gz
bench: $(INSTALLED)
	@test -n "$(TRL)" -a -n "$(DATA)" || { echo "needs TRL=PYTHON and DATA=FILE: see benchmarks/README.md"; exit 2; }
	$(BIN)/python benchmarks/dpo.py --trl-python $(TRL) --data $(DATA)
	$(BIN)/python benchmarks/reward.py --trl-python $(TRL) --data $(DATA)

# Every algorithm trained while things go wrong, about half an hour on two cores; writes benchmarks/results/soak.md.
soak: $(INSTALLED)
	$(BIN)/python benchmarks/soak.py

# Needs uv; answers a change of the dependencies in pyproject.toml, and prints what moved.
lock:
	echo $(TORCH) | uv pip compile pyproject.toml - --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-package torch --no-annotate --no-header --quiet --upgrade --output-file requirements/lock.txt
	git diff --stat requirements/lock.txt

clean:
	rm -rf $(VENV) .venv-oldest build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
