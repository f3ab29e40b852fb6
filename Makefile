# make setup   .venv with the pinned requirements and kdsuite; instant when nothing changed
# make run     the whole suite, offline by default; other configurations: make run ARGS="--config configs/small.yaml"
# make test    the quick tests, some minutes
# make test-slow   the others; make test-all both
# make bench   speed and memory, side by side with what else there is (installs it): tables, and results-bench/summary.md
# make harness repeats a run with lm-evaluation-harness (installs it, in .venv-lm-eval): its choices have to be ours
# make faults  kill, damage and fill up a small suite for a while: all must end as if nothing had happened
# make notebooks   the notebooks in Jupyter Lab, which the first call installs
# make pages   docs/notebooks, by running the notebooks offline
# make lint    style, types and which room imports which, without changing anything
# make format  let ruff fix and format
# make audit   the pinned dependencies against the database of known vulnerabilities (needs the network)
# make docs    docs/configuration.md, from the settings tree
# make clean   remove .venv, .venv-audit and caches; results/ stays

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
ARGS ?=

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadscope --no-loadscope-reorder
STAMP := .venv/.kdsuite-setup
LAB := .venv/.kdsuite-notebooks
PEERS := .venv/.kdsuite-bench
HARNESS := .venv-lm-eval

.PHONY: setup run test test-slow test-all bench harness faults notebooks pages lint format audit docs clean

setup: $(STAMP)

$(STAMP): requirements.txt pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "kdsuite needs Python 3.11 or newer: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(STAMP)

run: setup
	$(BIN)/kdsuite run --executor processes $(ARGS)

test: setup
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: setup
	$(PYTEST) -m slow $(ARGS)

test-all: setup
	$(PYTEST) $(ARGS)

bench: setup $(PEERS)
	$(BIN)/python benchmarks $(ARGS)

$(PEERS): requirements-bench.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-bench.txt
	@touch $(PEERS)

harness: setup $(HARNESS)
	KDSUITE_LM_EVAL=$(CURDIR)/$(HARNESS) $(BIN)/python -m pytest tests/extras/test_lm_eval_task.py $(ARGS)

$(HARNESS): requirements-lm-eval.txt
	rm -rf $@
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ --requirement requirements-lm-eval.txt

faults: setup
	$(BIN)/python tests/faults/harness.py $(ARGS)

notebooks: setup $(LAB)
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks

$(LAB): requirements-notebooks.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-notebooks.txt
	@touch $(LAB)

pages: setup
	$(BIN)/python notebooks/render.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache --no-logo

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

audit:
	test -x .venv-audit/bin/python || "$(PYTHON)" -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements-audit.txt
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement requirements.txt

docs: setup
	$(BIN)/python -m kdsuite.config.reference > docs/configuration.md

clean:
	rm -rf .venv .venv-audit .venv-lm-eval .pytest_cache .ruff_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
