# Two commands are enough: `make local` (try it) and `make test` (prove it). `make help` lists the rest.
# Everything is installed into .venv and .tools, from hashed locks, and again only when a lock changes.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

STACK ?= taskhook
ARCHITECTURE ?= arm64
ARGS ?=
TOOLS := .tools
UV := $(or $(shell command -v uv 2>/dev/null),$(TOOLS)/uv/bin/uv)
BIN := .venv/bin
SAM := $(TOOLS)/sam/bin/sam
MINISTACK := $(TOOLS)/ministack/bin/ministack

# The project's own Python first: `sam build` looks for python3.13 on PATH.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export SAM_CLI_TELEMETRY := 0

.PHONY: help
help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

.PHONY: local
local: tools ## the whole thing on this machine (ARGS="--port 8080 --task-seconds 8 …"; ARGS=--help)
	@exec python -m tests.local $(ARGS)

.PHONY: test
test: tools ## every test, the embedded stack included (ARGS="tests/unit -k …")
	python -m pytest $(ARGS)

.PHONY: check
check: tools ## format, lint, types, import contracts, template, locks
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	cfn-lint template.yaml
	$(SAM) validate --lint --template template.yaml --region us-east-1
	$(MAKE) lock LOCK_TO=$(TOOLS)/locks
	for lock in $(LOCKS); do diff -u $$lock $(TOOLS)/locks/$$lock || { echo "$$lock is out of date: run make lock"; exit 1; }; done

.PHONY: bench
bench: tools ## the figures of README (ARGS="NAME… --json FILE --quick")
	@exec python -m tests.bench $(ARGS)

.PHONY: picture
picture: tools ## the console's picture in README, anew, from its test
	PICTURE=tests/e2e/console.png python -m pytest tests/e2e/test_console.py -k redelivery

.PHONY: fmt
fmt: tools ## format, and mend what the linter can
	ruff check --fix .
	ruff format .

.PHONY: clean
clean: ## forget environments and builds
	rm -rf .venv $(TOOLS) .aws-sam .mypy_cache .pytest_cache .ruff_cache .hypothesis

# --- AWS ------------------------------------------------------------------------------------------------------------

.PHONY: deploy
deploy: tools ## into your AWS account; asks for the stack's name and the vendor key (ARGS="PublicUrl=https://… …")
	@stack=$(if $(filter file,$(origin STACK)),,$(STACK)); \
	[ -n "$$stack" ] || read -rp "Name of the stack [$(STACK)]: " stack; stack=$${stack:-$(STACK)}; \
	read -rsp "Vendor key (nothing: the one in place stays): " key; echo; \
	overrides=(Architecture=$(ARCHITECTURE) $(ARGS)); \
	ARCHITECTURE=$(ARCHITECTURE) UV=$(abspath $(UV)) $(SAM) build --parameter-overrides "$${overrides[@]}"; \
	folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	if [ -n "$$key" ]; then $(VENDOR_KEY_FILE); overrides+=("file://$$folder/key.yaml"); fi; \
	$(SAM) deploy --stack-name "$$stack" --parameter-overrides "$${overrides[@]}"; \
	echo "Next, a caller with its token: make caller NAME=me STACK=$$stack"

# Through a file, so that nobody reads the key in a list of processes.
VENDOR_KEY_FILE = printf "VendorKey: '%s'\n" "$${key//\'/\'\'}" > "$$folder/key.yaml"

.PHONY: caller
caller: tools ## a caller with its token and signing secret: make caller NAME=me
	@test -n "$(NAME)" || { echo "make caller NAME=me: NAME is missing" >&2; exit 2; }
	@exec taskhook callers add $(NAME) --stack $(STACK)

# --- environments ---------------------------------------------------------------------------------------------------

.PHONY: tools
tools: $(TOOLS)/.venv $(TOOLS)/.sam $(TOOLS)/.ministack

$(TOOLS)/uv/bin/uv:
	@echo "installing uv into $(TOOLS)/uv" >&2
	@python3 -m venv $(TOOLS)/uv
	@$(TOOLS)/uv/bin/python -m pip install --quiet --disable-pip-version-check uv

$(TOOLS)/.venv: requirements-dev.txt pyproject.toml .python-version | $(UV)
	@echo "installing the project's environment" >&2
	@mkdir -p $(TOOLS)
	@$(UV) venv --quiet --allow-existing --python 3.13 .venv
	@$(UV) pip sync --quiet --require-hashes --python .venv requirements-dev.txt
	@$(UV) pip install --quiet --python .venv --no-deps --no-build-isolation --editable .
	@touch $@

$(TOOLS)/.sam $(TOOLS)/.ministack: $(TOOLS)/.%: tests/local/%.txt .python-version | $(UV)
	@echo "installing $*" >&2
	@$(UV) venv --quiet --allow-existing --python 3.13 $(TOOLS)/$*
	@$(UV) pip sync --quiet --require-hashes --python $(TOOLS)/$* $<
	@touch $@

# --- locks: names, versions and hashes, never an address ----------------------------------------------------------------

LOCKS := layers/taskhook/requirements.txt requirements-dev.txt tests/local/sam.txt tests/local/ministack.txt
LOCK_TO ?= .
COMPILE := pip compile --quiet --universal --python-version 3.13 --generate-hashes --no-annotate --custom-compile-command "make lock"

.PHONY: lock
lock: | $(UV) ## resolve the locks again, keeping versions that still fit (ARGS=--upgrade for new ones)
	@for lock in $(LOCKS); do mkdir -p $(LOCK_TO)/$$(dirname $$lock); [ $(LOCK_TO) = . ] || cp $$lock $(LOCK_TO)/$$lock; done
	@$(UV) $(COMPILE) $(ARGS) pyproject.toml -o $(LOCK_TO)/layers/taskhook/requirements.txt
	@$(UV) $(COMPILE) $(ARGS) --extra dev -c $(LOCK_TO)/layers/taskhook/requirements.txt pyproject.toml -o $(LOCK_TO)/requirements-dev.txt
	@$(UV) $(COMPILE) $(ARGS) tests/local/sam.in -o $(LOCK_TO)/tests/local/sam.txt
	@$(UV) $(COMPILE) $(ARGS) tests/local/ministack.in -o $(LOCK_TO)/tests/local/ministack.txt
