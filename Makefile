# Two commands are all a new machine needs: `make demo` and `make test`. Python 3.11+ and make are assumed, nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test check format lint types contracts bench bench-peers tiny-model clean help
.DEFAULT_GOAL := help

help:            ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 16

# The stamp makes a second call free; a changed lock or pyproject installs again.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "interp needs Python 3.11 or newer; found $$($(PYTHON) --version). Try: make PYTHON=python3.11 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)   ## one study, from a trained transformer to attribution graphs
	$(BIN)/interp run specs/quickstart.yaml

test: $(STAMP)   ## the whole test suite
	$(BIN)/python -m pytest

check: format lint types contracts  ## everything static: format, lint, types, import contracts

format: $(STAMP) ## is the formatting as ruff would have it
	$(BIN)/ruff format --check .

lint: $(STAMP)   ## ruff
	$(BIN)/ruff check .

types: $(STAMP)  ## mypy
	$(BIN)/mypy

contracts: $(STAMP)  ## imports go down only
	$(BIN)/lint-imports

bench: $(STAMP)  ## figures into benchmarks/results/; never part of the tests
	$(BIN)/python -m benchmarks.run

bench-peers: $(STAMP)  ## the same graphs by circuit-tracer and by interp: PEER_CIRCUIT_TRACER=its environment's python
	@test -n "$(PEER_CIRCUIT_TRACER)" \
	  || { echo "name the python of circuit-tracer's environment: make bench-peers PEER_CIRCUIT_TRACER=..." >&2; exit 1; }
	$(BIN)/python -m benchmarks.circuit_tracer --peer $(PEER_CIRCUIT_TRACER)

tiny-model: $(STAMP)  ## train the SplitLlama that ships with the package, again
	$(BIN)/python tools/train_tiny_model.py

clean:           ## forget the environment and the runs
	rm -rf $(VENV) runs
