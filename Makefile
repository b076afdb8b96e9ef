# make demo   set up, write phantoms, ingest, window, train two minutes, predict, evaluate
# make test   set up, run every test that needs no real data and no GPU
# make check  lint, format, types, import contracts
# make docs   build the site into site/, warnings are errors
# make bench  measure on this machine
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
# relative, so that a checkout in a path with a space works
BIN := $(VENV)/bin
DEMO ?= demo
DEMO_SECONDS ?= 120
TEST_ARGS ?=

.PHONY: help setup demo test check docs bench clean

help:
	@sed -n '1,5s/^# //p' Makefile

setup: $(VENV)/.installed

# One install for everything; torch comes first so that its exact pin decides the build.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, found %d.%d" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv "$(VENV)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,report,export,codecs,clahe,cluster,objects,dev,docs]'
	@touch "$(VENV)/.installed"

demo: setup
	@PATH="$(CURDIR)/$(BIN):$$PATH" DEMO="$(DEMO)" DEMO_SECONDS="$(DEMO_SECONDS)" bash docs/demo.sh

test: setup
	$(BIN)/python -m pytest -n 2 -m "not real and not gpu and not nightly" \
	  --cov --cov-report=term:skip-covered --cov-report=xml $(TEST_ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup
	$(BIN)/python -m mkdocs build --strict

bench: setup
	$(BIN)/python -m benchmarks.bench_ingest
	$(BIN)/python -m benchmarks.bench_series_faults
	$(BIN)/python -m benchmarks.bench_layout
	$(BIN)/python -m benchmarks.bench_augment
	$(BIN)/python -m benchmarks.bench_metrics

clean:
	rm -rf "$(VENV)" "$(DEMO)"
