# `make` lists the targets. `make demo` and `make test` set up what they need themselves.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Stages run in the order they are written in, whatever -j says: they share two processors.
.NOTPARALLEL:

python := .venv/bin/python
stage := tools/stage
pytest := $(python) -m pytest -ra --durations=15
# Where kmodd lab finds a kernel for QEMU: boot/vmlinuz-* and lib/modules/*.
lab = KMODD_LAB_KERNELS="$$(realpath .cache/kernels/current)"
# Whatever begins as a shell script does.
scripts = $$(find .ci helper systemd tests tools -type f -exec awk \
	'FNR == 1 && /^\#!\/(usr\/)?bin\/(env )?(ba|da)?sh( |$$)/ { print FILENAME } { nextfile }' {} +)

TARGET = config
SECONDS = 60

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 10

demo: ## see kmodd at work in a disposable kernel (User-mode Linux)
	@tools/setup demo
	@.venv/bin/kmodd lab -- $(python) -m kmodd.lab.demo

test: setup lint pytest ## everything: set-up, lint, all tests

setup: ## install what the tests need: packages, .venv, kernels
	@$(stage) setup tools/setup test

lint: setup ## static checks only
	@$(stage) 'ruff check' $(python) -m ruff check
	@$(stage) 'ruff format' $(python) -m ruff format --check
	@$(stage) mypy $(python) -m mypy
	@$(stage) lint-imports .venv/bin/lint-imports
	@$(stage) 'compile the C' gcc -std=gnu11 -O2 -Wall -Wextra -Werror -fsyntax-only helper/*.c lab/*.c
	@$(stage) shellcheck shellcheck $(scripts)

pytest: setup
	@$(stage) pytest env $(lab) tools/test-all $(pytest)

unit: setup ## the tests that boot no kernel
	@$(stage) 'unit tests' env $(lab) $(pytest) -m 'not real'

real: setup ## the tests that boot real kernels
	@$(stage) 'tests on real kernels' env $(lab) $(pytest) -m real

bench: setup ## measure kmodd beside what it replaces, for half an hour at the most; QUICK=1: does it run?
	@$(stage) bench env $(lab) $(python) -m bench $(if $(QUICK),--quick,--write)

fuzz: setup ## look for inputs that break something: TARGET=config SECONDS=60
	@mkdir -p .cache/fuzz/$(TARGET)
	@$(stage) 'fuzz $(TARGET)' $(python) tests/fuzz/fuzz.py $(TARGET) -max_total_time=$(SECONDS) \
		-artifact_prefix=.cache/fuzz/$(TARGET)- .cache/fuzz/$(TARGET)

clean: ## remove what was built, installed and cached in this checkout
	rm -rf .venv .cache build .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help demo test setup lint pytest unit real bench fuzz clean
