# SPDX-License-Identifier: Apache-2.0
PYTHON ?= python3
VENV ?= .venv

.DEFAULT_GOAL := help
.PHONY: help build test check setup core

help:
	@echo 'make build   prune the embedded model: prunec build recipes/quickstart.yaml'
	@echo 'make test    run the default test suite'
	@echo 'make check   lint, formatting, types'
	@echo 'make setup   add every optional runtime to the environment: ONNX, vLLM for CPUs, lm-eval'
	@echo
	@echo 'All of them work in $(VENV) and prepare it when something is missing or has changed.'
	@echo 'build, test and check need the core and the developer tools (1.5 GB on disk); setup'
	@echo 'adds to them in place (3.5 GB in all). Choose another Python, 3.11 or newer, with'
	@echo 'PYTHON=python3.12 and another folder with VENV=folder.'

# Says what it installs; says nothing when the environment is current.
define prepare
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	found=$$($(PYTHON) --version 2>/dev/null) || found='not there'; \
	echo "prunec needs Python 3.11 or newer; $(PYTHON) is $$found" >&2; \
	echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
@$(PYTHON) scripts/environment.py $(1) --venv '$(VENV)'
endef

core:
	$(call prepare,core)

setup:
	$(call prepare,full)

build: core
	$(VENV)/bin/prunec build recipes/quickstart.yaml

test: core
	$(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: core
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/python scripts/typecheck.py
