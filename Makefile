# make demo   see RAFT at work on the model that ships, three to five minutes after installation
# make test   run the tests
# make check  format, lint, types, floors and tests: what a change must pass
# make lowest the demos on the oldest packages that pyproject.toml allows, in an environment of their own
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LOWEST := build/lowest
PACKAGES := --constraint constraints.txt --editable '.[dev,apps,llm,rewards,quantised]'

.PHONY: demo test check lowest lowest-install golden format install schema clean

demo: $(INSTALLED)
	$(BIN)/raftdiff demo

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The plug-in that checks shapes came after the oldest jaxtyping, and old packages warn of what new ones do.
lowest: lowest-install
	$(LOWEST)/bin/python -m pytest --override-ini addopts="--import-mode=importlib -q" -W default tests/e2e/test_demo.py

lowest-install: $(LOWEST)/.installed

$(LOWEST)/.installed: pyproject.toml
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --requirements pyproject.toml --extra apps --extra llm 'pytest>=8.3.2'
	touch $@

golden: $(INSTALLED)
	RAFTDIFF_GOLDEN=rewrite $(BIN)/python -m pytest tests/golden

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schema: $(INSTALLED)
	$(BIN)/raftdiff schema > configs/recipe.schema.json
	$(BIN)/raftdiff schema text > configs/llm/recipe.schema.json
	$(BIN)/raftdiff schema preferences > configs/rm/recipe.schema.json
	$(BIN)/raftdiff schema pipeline > configs/pipelines/recipe.schema.json

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("raftdiff needs Python 3.11 or newer; name one with: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet uv || true  # it takes a sixth of pip's time, and pip stands in for it
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(PACKAGES) || $(BIN)/python -m pip install --quiet --progress-bar off $(PACKAGES)
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
