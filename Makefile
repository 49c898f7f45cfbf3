# Each target does its own set-up: a fresh machine needs Python 3.11, Go, make and a package registry.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Changes with whatever the environment is made of, so that an old one is brought up to date.
STAMP := $(VENV)/.ready-$(shell cat requirements/dev.lock pyproject.toml | sha256sum | cut -c1-16)
LOCK := $(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command "make lock"
# Tests on all cores, the longest first (tests/conftest.py); on four at most, because each process that comes to
# it starts an API server of its own.
PYTEST := $(BIN)/pytest -n auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder
SOURCES := operator serving tests bench charts examples compile_hot_path.py
# What the sidecar is compared with, in an environment of its own.
PEERS := build/peers-$(shell sha256sum requirements/peers.lock | cut -c1-16)
# LiteLLM has an environment to itself, made when it is asked for.
LITELLM_PEER := build/litellm-$(shell sha256sum requirements/litellm.lock | cut -c1-16)
# A wheel with a compiled core, unpacked; named by what it is made of.
COMPILED := build/compiled/$(shell cat $$(find serving -name '*.py' | sort) compile_hot_path.py requirements/dev.lock | sha256sum | cut -c1-16)

.PHONY: help
help: ## Show what there is to make.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: demo
demo: $(STAMP) ## The main job on this machine alone: two teams, one engine emulator, a flood, and what fairserve makes of it.
	$(BIN)/fairserve demo -f examples/01-two-teams

.PHONY: demo-cluster
demo-cluster: $(STAMP) ## The same story with a real API server, Prometheus, the operator, sidecars and vLLM on the CPU.
	$(BIN)/python -m tests.parts controlplane prometheus vllm
	$(BIN)/python examples/02-cluster/demo.py

.PHONY: test
test: $(STAMP) $(COMPILED) ## All tests, with the real parts they need (built once and cached in ~/.cache/fairserve).
	$(BIN)/python -m tests.parts
	$(PYTEST)
	$(MAKE) --no-print-directory test-compiled

.PHONY: test-unit
test-unit: $(STAMP) ## The tests that need no real part but helm, which renders the chart.
	$(BIN)/python -m tests.parts helm
	$(PYTEST) tests/unit tests/property

.PHONY: test-compiled
test-compiled: $(STAMP) $(COMPILED) ## The tests of the core and the sidecar on the compiled hot path.
	FAIRSERVE_CORE=compiled $(PYTEST) -o pythonpath=". $(COMPILED)" tests/unit/test_compiled.py tests/unit/core tests/unit/engine tests/unit/sidecar tests/property tests/simulation tests/integration/test_sidecar_*.py

.PHONY: compiled
compiled: $(COMPILED) ## A wheel with the hot path compiled by mypyc, in build/compiled; needs a C compiler.

.PHONY: mutants
mutants: $(STAMP) ## Whether the tests catch deliberate faults in the core.
	$(BIN)/python -m bench.mutants

.PHONY: bench-core
bench-core: $(STAMP) $(COMPILED) ## Speed and memory of the scheduling core, compiled and plain: build/bench/core.json.
	$(BIN)/python -m bench.core --compiled $(COMPILED)

.PHONY: bench-sidecar
bench-sidecar: $(STAMP) $(COMPILED) $(PEERS) $(if $(LITELLM),$(LITELLM_PEER)) ## The sidecar beside vllm-router before one dummy engine: build/bench/sidecar.json; LITELLM=1 adds LiteLLM; SIDECAR_PYTHON=PATH runs the sidecar on a Python that is built as the image's is.
	$(BIN)/python -m bench.sidecar --compiled $(COMPILED) --router $(PEERS)/bin/vllm-router \
		$(if $(SIDECAR_PYTHON),--python $(SIDECAR_PYTHON)) $(if $(LITELLM),--litellm $(LITELLM_PEER)/bin/litellm)

.PHONY: bench-engine
bench-engine: $(STAMP) $(COMPILED) ## The sidecar before a real vLLM on the CPU, and that vLLM alone: build/bench/engine.json.
	$(BIN)/python -m tests.parts vllm
	$(BIN)/python -m bench.engine --compiled $(COMPILED)

.PHONY: bench-operator
bench-operator: $(STAMP) ## The operator with a real API server, 1,000 sidecars and 10,000 tenants, and with Prometheus: build/bench/operator.json; PODS=, TENANTS=, CHANGES=, POOLS=.
	$(BIN)/python -m tests.parts controlplane prometheus
	PYTHONPATH=serving:operator $(BIN)/python -m bench.operator $(if $(PODS),--pods $(PODS)) $(if $(TENANTS),--tenants $(TENANTS)) $(if $(CHANGES),--changes $(CHANGES)) $(if $(POOLS),--pools $(POOLS))

.PHONY: bench-soak
bench-soak: $(STAMP) $(COMPILED) ## The sidecar under mixed calls for MINUTES (10), and its books at the end: build/bench/soak.json.
	$(BIN)/python -m bench.soak --compiled $(COMPILED) $(if $(MINUTES),--minutes $(MINUTES))

.PHONY: paper
paper: $(STAMP) $(COMPILED) ## The paper's experiments on the simulator: docs/paper.md, build/bench/paper.json; TRACES=DIR adds public traces.
	PYTHONPATH=$(COMPILED) $(BIN)/python -m bench.paper $(if $(TRACES),--traces $(TRACES))

# Whichever is installed and has an engine; flags for its `build` in IMAGE_FLAGS.
ENGINE ?= $(shell for engine in docker podman; do $$engine info >/dev/null 2>&1 && echo $$engine && break; done)
IMAGE_FLAGS ?=
TAG ?= $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' serving/fairserve/__init__.py)
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
.PHONY: images
images: ## The images fairserve-operator and fairserve-sidecar, with docker or podman; TAG= (the version), ENGINE=, IMAGE_FLAGS=.
	test -n "$(ENGINE)" || { echo "images are built with docker or podman, and neither works here" >&2; exit 1; }
	for image in operator sidecar; do \
		$(ENGINE) build $(IMAGE_FLAGS) --target $$image --build-arg VERSION=$(TAG) --build-arg REVISION=$(REVISION) \
			--tag fairserve-$$image:$(TAG) .; \
	done

.PHONY: e2e-node
e2e-node: $(STAMP) ## The images and the chart on a real kubelet, in a network of its own; needs root (installs containerd, podman and others with apt-get).
	$(BIN)/python -m tests.parts controlplane helm prometheus node images
	$(BIN)/python -m tests.parts.enclosure $(BIN)/pytest tests/node

.PHONY: check
check: lint types imports generated test ## Exactly what CI runs.

.PHONY: lint
lint: $(STAMP) ## Format and lint.
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)

.PHONY: types
types: $(STAMP) ## Types.
	$(BIN)/mypy

.PHONY: imports
imports: $(STAMP) ## Who imports whom.
	$(BIN)/lint-imports

.PHONY: generated
generated: $(STAMP) ## Whether generated files are up to date.
	$(BIN)/python -m fairserve_operator.crdgen --check
	$(BIN)/python charts/generate.py --check
	$(BIN)/python charts/dashboards.py --check
	rm -rf build/lock && mkdir -p build/lock && cp -r requirements build/lock/
	$(MAKE) --no-print-directory lock REQUIREMENTS=build/lock/requirements
	diff -r requirements build/lock/requirements || { echo "requirements/*.lock are out of date: run 'make lock'" >&2; exit 1; }

.PHONY: format
format: $(STAMP) ## Format, and mend what ruff can.
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

.PHONY: generate
generate: $(STAMP) ## Write crds/, docs/reference/api.md, the chart's copies of CRDs, its schema, table of values and dashboards.
	$(BIN)/python -m fairserve_operator.crdgen
	$(BIN)/python charts/generate.py
	$(BIN)/python charts/dashboards.py

REQUIREMENTS ?= requirements
.PHONY: lock
lock: $(BIN)/uv ## Write requirements/*.lock; UPGRADE=--upgrade takes the newest versions.
	$(LOCK) --universal $(UPGRADE) pyproject.toml --extra operator --extra local --extra otel --extra sim --group dev -o $(REQUIREMENTS)/dev.lock
	$(LOCK) --universal $(UPGRADE) pyproject.toml --extra operator -c requirements/dev.lock -o $(REQUIREMENTS)/operator.lock
	$(LOCK) --universal $(UPGRADE) pyproject.toml --extra sidecar -c requirements/dev.lock -o $(REQUIREMENTS)/sidecar.lock
	$(LOCK) --universal $(UPGRADE) --group build -c requirements/dev.lock -o $(REQUIREMENTS)/build.lock
	cd $(REQUIREMENTS) && $(CURDIR)/$(LOCK) $(UPGRADE) peers.in -o peers.lock
	cd $(REQUIREMENTS) && $(CURDIR)/$(LOCK) $(UPGRADE) litellm.in -o litellm.lock
	cd $(REQUIREMENTS) && $(CURDIR)/$(LOCK) $(UPGRADE) envoy.in -o envoy.lock
	cd $(REQUIREMENTS) && $(CURDIR)/$(LOCK) $(UPGRADE) vllm.in --overrides vllm-overrides.txt -o vllm.lock

.PHONY: clean
clean: ## Remove what was built in this folder; the cache of real parts stays.
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(BIN)/uv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fairserve needs Python 3.11 or newer: set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(PEERS): LOCKED := peers
$(LITELLM_PEER): LOCKED := litellm
$(PEERS) $(LITELLM_PEER): | $(BIN)/uv
	rm -rf build/$(LOCKED)-* && $(BIN)/uv venv --quiet --python $(BIN)/python $@
	$(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode --python $@/bin/python requirements/$(LOCKED).lock || { rm -rf $@; exit 1; }

$(COMPILED): | $(STAMP)
	command -v cc >/dev/null || { echo "a compiled core needs a C compiler: apt-get install gcc libc6-dev" >&2; exit 1; }
	rm -rf build/compiled && mkdir -p build/compiled
	HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 $(BIN)/uv build --quiet --wheel --no-build-isolation --python $(BIN)/python -o build/compiled .
	$(BIN)/uv pip install --quiet --no-deps --target $@.part build/compiled/*.whl
	mv $@.part $@

$(STAMP): | $(BIN)/uv
	$(BIN)/uv pip sync --quiet --require-hashes requirements/dev.lock
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	rm -f $(VENV)/.ready-*
	touch $@
