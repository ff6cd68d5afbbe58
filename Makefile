# `make compare` and `make test` set everything up by themselves; a second call installs nothing again.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# uv where it is found, plain pip everywhere else.
PIP    := $(shell command -v uv >/dev/null 2>&1 && echo "uv pip install --quiet --python $(BIN)/python" \
            || echo "$(BIN)/python -m pip --require-virtualenv install --quiet --disable-pip-version-check")

.PHONY: help compare test test-slow matrix lint types floors unit docs bench bench-gpu bench-check dist release-check clean
help:
	@echo "make compare    train SGD, WP-SGD, NSO and SAM on real data and write a report (ARGS='--help' for options)"
	@echo "make test       every check: ruff, pyright, import contract, pages, tests, doctests"
	@echo "make test-slow  the tests that take minutes"
	@echo "make matrix     every method in every loop: runs each cell, prints the table, writes docs/matrix.md"
	@echo "make docs       build the pages, with their gallery, into build/docs"
	@echo "make bench      what a training step costs above its limit, beside peers: minutes on two cores (bench-gpu: on a GPU)"
	@echo "make bench-check  measure these ratios anew and compare them with the stored ones"
	@echo "make dist       build wheel and sdist into dist/"
	@echo "make release-check  build them, install them into a clean environment, measure the import"
	@echo "make clean      remove $(VENV) and caches (never runs/)"

compare: $(VENV)/.lab
	@$(BIN)/flatmin compare $(ARGS)

test: lint types floors docs unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/pyright

floors: $(VENV)/.dev
	$(BIN)/lint-imports

unit: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile $(ARGS)

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow $(ARGS)

matrix: $(VENV)/.dev
	MATRIX_PAGE=1 $(BIN)/python -m pytest tests/optim -m loop -p matrix -n 2 --dist loadfile -q $(ARGS)

# Read anew each time (-E), since a page that has not changed would not warn again; the gallery's scripts are run.
docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -W -E -q -b html -d build/doctrees docs build/docs
	@echo "The pages: build/docs/index.html"

# Peers are measured if they are installed there; benchmarks/README.md names them.
bench: $(VENV)/.dev
	PYTHONPATH=benchmarks $(BIN)/python -m training.run $(ARGS)
	$(BIN)/python docs/performance.py

bench-gpu: $(VENV)/.dev
	PYTHONPATH=benchmarks $(BIN)/python -m training.run --device cuda $(ARGS)
	$(BIN)/python docs/performance.py

bench-check: $(VENV)/.dev
	PYTHONPATH=benchmarks $(BIN)/python -m training.check $(ARGS)

# RELEASE=1.2.3 refuses to build anything but that version, with its section in the changelog.
dist: $(VENV)/.build
	@version=$$($(BIN)/hatchling version) && [ -z "$(RELEASE)" ] || [ "$(RELEASE)" = "$$version" ] \
	    || { echo "flatmin.__version__ is $$version, and the release is $(RELEASE): change one of them."; exit 1; }
	@[ -z "$(RELEASE)" ] || grep -q '^## \[$(RELEASE)\]' CHANGELOG.md \
	    || { echo "CHANGELOG.md has no section [$(RELEASE)]: rename [Unreleased]."; exit 1; }
	rm -rf dist
	$(BIN)/hatchling build -d dist

release-check: dist
	$(BIN)/python benchmarks/clean_install.py

# Made again where it was not made to its end; an environment that is there already is completed, never wiped.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "flatmin needs Python 3.11 or newer, and $(PYTHON) is %s. Name another one: make PYTHON=python3.12 ..." % sys.version.split()[0])'
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# Building needs hatchling alone: a release meets none of the development tools.
$(VENV)/.build: constraints.txt | $(VENV)/.made
	@$(PIP) --constraint constraints.txt hatchling
	@touch $@

$(VENV)/.lab: pyproject.toml constraints.txt | $(VENV)/.made
	@echo "Installing flatmin with what the comparison needs into $(VENV) (once; a minute or so) ..."
	@$(PIP) --constraint constraints.txt --editable '.[lab]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.made
	@echo "Installing flatmin with its development tools into $(VENV) (once; a minute or so) ..."
	@$(PIP) --constraint constraints.txt --editable '.[dev]'
	@touch $(VENV)/.lab $@

clean:
	rm -rf $(VENV) .hypothesis .pytest_cache .ruff_cache build dist docs/auto_gallery
