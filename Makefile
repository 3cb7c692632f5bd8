# Two commands set up a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed

.PHONY: install demo test test-all check docs format mutants notebooks assets pages dist clean

install: $(STAMP)

# Rebuilt when it is missing, or older than what it is built from.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: install
	$(BIN)/halfstep demo --out runs/demo

test: install
	$(BIN)/python -m pytest -q -n 2

test-all: install
	$(BIN)/python -m pytest -q -n 2 -m 'not gpu'

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell halfstep tests docs examples benchmarks .github *.md CITATION.cff

# The site, build/docs/index.html; a warning is an error.
docs: install
	$(BIN)/python -m sphinx -q -W --keep-going -E -b html docs build/docs

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The json of the models that come with halfstep, anew: after a change of what such a file says.
assets: install
	$(BIN)/python -m tests.support.assets

# What `halfstep VERB --help` prints, anew: after a change of an option or of its docstring.
pages: install
	$(BIN)/python -m tests.cli.help_pages
	$(BIN)/python -m tests.cli.completion_scripts

# The notebooks of the documentation, run and written with their outputs.
notebooks: install
	$(BIN)/python -m tests.support.notebooks

mutants: install
	$(BIN)/python -m tests.mutants

# What PyPI gets: dist/*.tar.gz and the wheel that is built from it, checked by twine in an environment of its own.
dist: install
	rm -rf dist
	$(BIN)/python -m build
	$(PYTHON) -m venv build/twine
	build/twine/bin/python -m pip install -q --disable-pip-version-check twine
	build/twine/bin/twine check --strict dist/*

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
