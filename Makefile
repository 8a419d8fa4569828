# `make` lists the targets. PYTHON chooses the interpreter: make test PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# A process a core, of one thread each; who is done takes over what another has not begun.
PARALLEL := -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help run check test lint format wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

run: .venv/installed ## fine-tune on the built-in shapes; ends by saying where the results are
	$(BIN)/accelerate launch finetune/train.py --recipe shapes
	@echo 'To train longer, for a better model:'
	@echo '  $(BIN)/finetune train shapes train.steps=4000 train.lr=1e-3 output=runs/shapes-long'

check: .venv/installed-dev lint ## lint and the fast tests, two at a time: before a commit
	$(BIN)/pytest $(PARALLEL) -m 'not slow and not network and not scale'

test: check ## lint and every test: what CI runs
	$(BIN)/pytest -m 'slow and not network and not scale'

lint: .venv/installed-dev ## ruff and mypy, changing nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/installed-dev ## mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

wheel: .venv/installed-dev ## dist/: the wheel, with the recipes inside, and the source archive
	$(BIN)/python -m hatchling build -d dist
	$(BIN)/twine check --strict dist/segformer_finetune-*

clean: ## remove the environment and the caches, not runs/
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) -e '.[dev]'
	touch $@
