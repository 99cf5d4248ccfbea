# Everything a newcomer needs. Each command first makes .venv what requirements.lock says, which
# takes two minutes once and a tenth of a second after that.
PYTHON ?= python3
RUN := .venv/bin/python
ARGS ?=
# Most tests wait for processes rather than compute, so two cores are kept busy by four.
WORKERS ?= 4
# Where it is set, every process compiles anew what it imports: twice the time of all tests.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo up services test check format lock clean

help:  ## Show this list
	@sed -n 's/^\([a-z]*\):.*  ## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

setup:  ## Make .venv from requirements.lock
	@$(PYTHON) marketplace/devstack/bootstrap.py

demo: setup  ## From an idle machine to a trained, paid-for model, in one command
	@$(RUN) -m marketplace.devstack demo

up: setup  ## The whole site with two nodes, until Ctrl-C
	@$(RUN) -m marketplace.devstack up

services: setup  ## Only PostgreSQL, Valkey, S3 and Stripe's stand-in, until Ctrl-C
	@$(RUN) -m marketplace.devstack services

test: setup  ## The whole suite; ARGS='tests/ledger -k post' for a part of it
ifeq ($(strip $(ARGS)),)
	@$(RUN) -m pytest --dist loadfile --no-loadscope-reorder -n $(WORKERS)
else
	@$(RUN) -m pytest $(ARGS)
endif

check: setup  ## Format, lint, types, import contracts, dependencies
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@DEBUG=true .venv/bin/mypy
	@.venv/bin/lint-imports --no-logo
	@.venv/bin/deptry .

format: setup  ## Let ruff format, and mend what it can
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

lock: setup  ## Resolve pyproject.toml anew into requirements.lock
	@$(PYTHON) marketplace/devstack/bootstrap.py --lock

clean:  ## Remove this checkout's data (.gridloom); the environment stays
	@test ! -e .gridloom/run/stack.lock || flock -n .gridloom/run/stack.lock true || \
		{ echo "The stack runs: stop it first, with Ctrl-C where it runs." >&2; exit 1; }
	@rm -rf .gridloom
