# SPDX-License-Identifier: Apache-2.0
# Every target prepares the machine by itself (scripts/setup.sh); a second run starts in seconds.
PY := .venv/bin/python
.PHONY: help setup demo test quick lint bench docs shim clean

help:
	@echo "make demo    the four-host case, live, with real Docker Engines"
	@echo "make test    all tests (quick ones first, then kernel, then engines)"
	@echo "make quick   the tests that need nothing but Python"
	@echo "make lint    ruff, mypy --strict, import contracts"
	@echo "make bench   figures beside peers, written to docs/benchmarks.md"
	@echo "make docs    regenerate the references in docs/"
	@echo "make shim    the plug-in of CNI in C: build/plait-cni (optional)"
	@echo "make clean   remove labs a dead run left, caches and the virtual environment"

setup:
	@scripts/setup.sh

demo: setup
	@.venv/bin/plait lab demo

test: setup
	@scripts/test.sh

quick: setup
	@$(PY) -m pytest -q tests/unit tests/property tests/golden tests/house

lint: setup
	@.venv/bin/ruff check src tests scripts bench examples
	@.venv/bin/ruff format --check src tests scripts bench examples
	@.venv/bin/mypy
	@.venv/bin/lint-imports

bench: setup
	@$(PY) -m bench

docs: setup
	@$(PY) scripts/docs.py

shim: build/plait-cni

build/plait-cni: packaging/cni/plait.c
	@mkdir -p build
	$(CC) -std=c11 -O2 -static -s -Wall -Wextra -Werror -o $@ $<

clean:
	@[ ! -x .venv/bin/plait ] || .venv/bin/plait lab down --all
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
