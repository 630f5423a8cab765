# Two commands are all a new machine needs: `make demo` and `make test`. Python 3.11+ and make are assumed, nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test test-kernels check check-image check-image-install format lint types contracts bench bench-peers bench-dictionaries bench-interchange tiny-model clean help
.DEFAULT_GOAL := help

help:            ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 22

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

test-kernels: $(STAMP)  ## the Triton kernels: on a GPU, else in Triton's interpreter (an install of its own, below .triton)
	test -d .triton/triton || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .triton triton==3.9.0
	PYTHONPATH=.triton $(BIN)/python -m pytest tests/dictionaries/test_dictionary_triton.py

check: format lint types contracts check-image  ## everything static: format, lint, types, import contracts, the image's rules

format: $(STAMP) ## is the formatting as ruff would have it
	$(BIN)/ruff format --check .

lint: $(STAMP)   ## ruff
	$(BIN)/ruff check .

types: $(STAMP)  ## mypy
	$(BIN)/mypy

contracts: $(STAMP)  ## imports go down only
	$(BIN)/lint-imports

check-image: $(STAMP)  ## the Dockerfile's rules, without Docker
	$(BIN)/python tools/check_image.py

check-image-install: $(STAMP)  ## also run the Dockerfile's build commands in a clean folder, and what they install: minutes
	$(BIN)/python tools/check_image.py --install

bench: $(STAMP)  ## figures into benchmarks/results/; never part of the tests
	$(BIN)/python -m benchmarks.run

bench-peers: $(STAMP)  ## the same graphs by circuit-tracer and by interp: PEER_CIRCUIT_TRACER=its environment's python
	@test -n "$(PEER_CIRCUIT_TRACER)" \
	  || { echo "name the python of circuit-tracer's environment: make bench-peers PEER_CIRCUIT_TRACER=..." >&2; exit 1; }
	$(BIN)/python -m benchmarks.circuit_tracer --peer $(PEER_CIRCUIT_TRACER)

# Pythons of the peers' environments, as many as there are: PEER_SPARSIFY=, PEER_SAELENS=, PEER_DICTIONARY_LEARNING=
PEERS = $(if $(PEER_SPARSIFY),--sparsify $(PEER_SPARSIFY)) $(if $(PEER_SAELENS),--saelens $(PEER_SAELENS)) \
        $(if $(PEER_DICTIONARY_LEARNING),--dictionary-learning $(PEER_DICTIONARY_LEARNING))

bench-dictionaries: $(STAMP)  ## train beside sparsify, SAELens and dictionary_learning, on the same tokens: PEER_SPARSIFY=...
	$(BIN)/python -m benchmarks.dictionaries $(PEERS)

bench-interchange: $(STAMP)  ## each other's checkpoints, in each other's programs: PEER_SPARSIFY=...
	$(BIN)/python -m benchmarks.peers.interchange $(PEERS)

tiny-model: $(STAMP)  ## train the SplitLlama that ships with the package, again
	$(BIN)/python tools/train_tiny_model.py

clean:           ## forget the environment and the runs
	rm -rf $(VENV) runs
