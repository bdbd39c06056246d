# The front door. `make help` explains.
SHELL := /bin/bash
# The distribution's interpreter where it is new enough: it gets security updates, and one built without
# profile-guided optimisation takes half as much CPU again (docs/performance.md).
PYTHON ?= $(shell tools/require interpreter)
VENV := .venv
BIN := $(VENV)/bin
PROTOS_VENV := .venv-protos
GRPCURL_VERSION := v1.9.3
LAB ?= .lab
export PATH := $(CURDIR)/.cache/bin:$(PATH)

.PHONY: help setup packages demo example-nf test lint format bench simulate chaos soak protos lock grpcurl clean

help: ## Show this text
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(VENV)/.done packages ## Install what is missing: Debian packages and the pinned dependencies

$(VENV)/.done: requirements.lock pyproject.toml packaging/nf-agent/pyproject.toml tools/require
	@tools/require python "$(PYTHON)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "· pinned dependencies into $(VENV)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock \
	  || { echo "nftrust: the pinned dependencies cannot be installed: is there a network?" >&2; exit 1; }
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation \
	  -e packaging/nf-agent -e .
	@touch $@

packages:
	@tools/require packages

demo: setup grpcurl ## Three NFs get their first certificates, step by step, and use them (the lab stays up in .lab)
	@$(BIN)/nftrust demo --dir $(LAB)

example-nf: setup ## An NF that serves with nginx and its token key: call, renewal under load, call
	@$(BIN)/python examples/nf-nginx/run.py

test: setup grpcurl protos-env ## Run every test against real SoftHSM and real gRPC
	@tools/require test-packages
	@tools/slim-envs $(BIN)/python
	$(BIN)/python -m pytest -q $(ARGS)

lint: setup ## ruff, mypy strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy nftrust ca_ra cmproxy verifier nf_agent softhsm bench
	$(BIN)/lint-imports

format: setup ## Format the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## Measure in one run: CPU per certificate, handshakes, 100,000 NFs, whole enrolments, memory (docs/performance.md)
	$(BIN)/python -m bench $(ARGS)

simulate: $(VENV)/.simulate ## A year of 10,000 NFs under random outages on a virtual clock, drawn in .bench/year.png
	$(BIN)/python -m bench.simulate $(ARGS)

$(VENV)/.simulate: $(VENV)/.done bench/requirements.lock
	@echo "· matplotlib into $(VENV)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r bench/requirements.lock
	@touch $@

chaos: setup ## The kill test alone, longer: processes get SIGKILL while NFs enrol
	NFTRUST_CHAOS_NFS=$${NFTRUST_CHAOS_NFS:-50} $(BIN)/python -m pytest -q -m chaos $(ARGS)

soak: setup ## Enrol over and over for SOAK_SECONDS (default 600) and compare memory and handles
	$(BIN)/python -m bench soak --seconds $${SOAK_SECONDS:-600}

.PHONY: protos-env
protos-env: $(PROTOS_VENV)/.done

$(PROTOS_VENV)/.done: protos/requirements.lock
	@test -x $(PROTOS_VENV)/bin/python || $(PYTHON) -m venv $(PROTOS_VENV)
	@$(PROTOS_VENV)/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r protos/requirements.lock
	@touch $@

protos: protos-env ## Generate the stubs in nftrust/api anew
	$(PROTOS_VENV)/bin/python protos/generate.py .

lock: ## Pin the newest dependencies with hashes (and, for the NF agent alone, the oldest)
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip compile -q -U --extra dev --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
	  --no-emit-package nf-agent pyproject.toml -o requirements.lock
	echo 'matplotlib>=3.9' | $(BIN)/uv pip compile -q -U --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
	  -c requirements.lock - -o bench/requirements.lock
	$(BIN)/uv pip compile -q -U --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
	  packaging/nf-agent/pyproject.toml -o tests/slim/newest.lock
	$(BIN)/uv pip compile -q -U --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
	  --resolution lowest-direct packaging/nf-agent/pyproject.toml -o tests/slim/floor.lock
	$(BIN)/uv pip compile -q -U --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
	  protos/requirements.in -o protos/requirements.lock

grpcurl: ## Install the pinned grpcurl into .cache/bin, where Go is present
	@if ! command -v grpcurl >/dev/null && command -v go >/dev/null; then \
	  echo "· grpcurl $(GRPCURL_VERSION)"; \
	  GOBIN=$(CURDIR)/.cache/bin go install github.com/fullstorydev/grpcurl/cmd/grpcurl@$(GRPCURL_VERSION) 2>&1 \
	  | grep -v "^go: downloading" >&2; test -x .cache/bin/grpcurl || echo "nftrust: grpcurl could not be installed (is there a network?)" >&2; fi

clean: ## End the lab and remove what was made
	@if [ -x $(BIN)/nftrust ] && [ -e $(LAB)/lab.json ]; then $(BIN)/nftrust lab down --dir $(LAB); fi
	rm -rf $(LAB) .bench $(VENV) $(PROTOS_VENV) .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
