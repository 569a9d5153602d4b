# `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help venv lint format docs unit trial test simulate soak acceptance mutants demo cluster clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

venv: $(STAMP) ## Make .venv with the project and its tools (PYTHON=... chooses the interpreter)

# Again only when a file changes that says what is installed.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(PYTHON) is missing or older than 3.11; name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	    echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) --constraint constraints.txt --editable '.[dev]'
	@touch $@

lint: venv ## Check style, types and the layers
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: venv ## Format the code, and mend what the linter can mend
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

docs: venv ## Build the documentation into docs/_build/html; a warning is an error
	@$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --builder html docs docs/_build/html

unit: venv ## Run the tests alone
	@$(BIN)/python -m pytest

trial: venv ## Run the tests with Twisted's own runner
	@$(BIN)/trial --reporter=text --temp-directory=_trial_temp tests

VALUES_ON_DISK := --application zlayer_consensus.testing.simulation:values_on_disk

# As many seeds as fit, the same ones first; what they find is one command away from its trace.
simulate: venv ## Simulate clusters under faults for two minutes, and for half a minute with values on disk
	@$(BIN)/python -m zlayer_consensus.testing.simulate --seeds 1.. --minutes 2
	@$(BIN)/python -m zlayer_consensus.testing.simulate --seeds 1.. --minutes 0.5 $(VALUES_ON_DISK)

soak: venv ## Simulate as many seeds as asked for, on all cores: make soak SEEDS=1..20000
	@$(BIN)/python -m zlayer_consensus.testing.simulate --seeds $(or $(SEEDS),1..20000)

# The tests come last, so that their closing line is the last of the output.
test: lint docs simulate unit ## Run all checks and tests

# How long the torture lasts, and what it does: make acceptance SECONDS=600 SEED=7
SECONDS ?= 120
SEED ?= 1

acceptance: venv ## Kill, stop and starve real nodes for several minutes, and see that nothing is lost
	@$(BIN)/python -m tests.acceptance.answers --seed $(SEED)
	@$(BIN)/python -m tests.acceptance.kill_all --rounds 10 --seed $(SEED)
	@$(BIN)/python -m tests.acceptance.kill_all --rounds 10 --values disk --seed $(SEED)
	@$(BIN)/python -m tests.acceptance.stopped follower --seconds 10 --seed $(SEED)
	@$(BIN)/python -m tests.acceptance.stopped leader --seconds 10 --seed $(SEED)
	@$(BIN)/python -m tests.acceptance.catch_up --entries 50000 --seed $(SEED)
	@$(BIN)/python -m tests.acceptance.broken_off --seed $(SEED)
	@$(BIN)/python -m tests.acceptance.full_disks --seed $(SEED)
	@$(BIN)/python -m tests.acceptance.full_disks --values disk --seed $(SEED)
	@$(BIN)/python -m tests.acceptance.larger_than_memory
	@$(BIN)/python -m tests.acceptance.snapshot_load --keys 200000 --rounds 3 --seed $(SEED)
	@$(BIN)/python -m tests.acceptance.kill_writer --rounds 1000 --seed $(SEED)
	@$(BIN)/python -m tests.acceptance.large_log
	@$(BIN)/python -m tests.acceptance.sweep --rounds 1
	@$(BIN)/python -m tests.acceptance.crashes --seeds 5 --further 2
	@$(BIN)/python -m tests.acceptance.torture --seconds $(SECONDS) --seed $(SEED)
	@$(BIN)/python -m tests.acceptance.torture --churn --seconds $(SECONDS) --seed $(SEED)

# How many seeds each gets, and on how many cores: make mutants SEEDS=100 JOBS=4
mutants: venv ## Put known bugs into copies of the code, and see that the simulator finds each
	@$(BIN)/python -m tests.mutants --seeds $(or $(SEEDS),500) --jobs $(or $(JOBS),1)

demo: venv ## Start a cluster on this machine and show it at work
	@$(BIN)/python -m zlayer_consensus.daemon.demo

cluster: venv ## Start a cluster on this machine and keep it running
	@$(BIN)/python -m zlayer_consensus.daemon.cluster

clean: ## Remove what the targets made
	rm -rf $(VENV) build dist *.egg-info docs/_build _trial_temp* .hypothesis
	rm -rf .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f twisted/plugins/dropin.cache
