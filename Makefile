# Two commands are enough: `make local` (try it) and `make test` (prove it). `make help` lists the rest.
# Everything is installed into .venv and .tools, from hashed locks, and again only when a lock changes.
# Written for GNU make 3.81 too, which macOS has: it ignores .SHELLFLAGS, so that a recipe's line is one command.

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

STACK ?= taskhook
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
test: tools ## every test, the embedded stack included (ARGS="tests/unit -k …"; ARGS="-n 0 -s": in one process)
	python -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)

.PHONY: check
check: tools ## format, lint, types, import contracts, template, locks
	@$(LOCKED) $(MAKE) $(TOOLS)/checkov/complete
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	cfn-lint template.yaml
	$(TOOLS)/checkov/bin/checkov --file template.yaml --framework cloudformation --compact --quiet --skip-download
	$(SAM) validate --lint --template template.yaml --region us-east-1
	$(MAKE) lock LOCK_TO=$(TOOLS)/locks
	for lock in $(LOCKS); do diff -u $$lock $(TOOLS)/locks/$$lock || { echo "$$lock is out of date: run make lock"; exit 1; }; done

.PHONY: bench
bench: tools ## the figures of tests/README.md (ARGS="NAME… --json FILE --quick")
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

# STACK=…, VENDOR_KEY_FILE=…, ARCHITECTURE=…, PARAMETERS=…, CONFIRM=… and CONFIRM_DATA=… reach layers/deploy.py through the environment.

.PHONY: deploy
deploy: tools ## into your AWS account (STACK=… VENDOR_KEY_FILE=… ARGS="PublicUrl=https://… …", or it asks; ARGS=--help)
	@exec python -m layers.deploy deploy $(ARGS)

.PHONY: destroy
destroy: tools ## delete a stack; tables, keys and results stay, unless its name is typed again (STACK=…)
	@exec python -m layers.deploy destroy $(ARGS)

.PHONY: caller
caller: tools ## a caller with its token and signing secret: make caller NAME=me
	@test -n "$(NAME)" || { echo "make caller NAME=me: NAME is missing" >&2; exit 2; }
	@exec taskhook callers add $(NAME) --stack $(STACK)

# --- environments ---------------------------------------------------------------------------------------------------

# Ctrl-C, SIGKILL or a full disk may end an installation anywhere. So only a complete environment holds its stamp, made last;
# what has none is deleted, not mended: half of a package looks installed to an installer.

# One at a time: the lock ends with the last process that holds it, an installer that outlived its make included.
LOCKED := python3 -c 'import fcntl, os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); \
  lock = open(sys.argv[1], "w"); fcntl.flock(lock, fcntl.LOCK_EX); os.set_inheritable(lock.fileno(), True); os.execvp(sys.argv[2], sys.argv[2:])' $(TOOLS)/lock

# Said where an installer fails, and not after Ctrl-C.
OR_SAY := || { [ $$? = 130 ] || echo "Behind a company's certificate authority: export UV_SYSTEM_CERTS=1 (an older uv: UV_NATIVE_TLS=1), then again." >&2; exit 1; }

.PHONY: tools
tools:
	@mkdir -p $(TOOLS)
	@$(LOCKED) $(MAKE) installed

.PHONY: installed
installed: .venv/complete $(TOOLS)/sam/complete $(TOOLS)/ministack/complete $(TOOLS)/sdks/complete $(TOOLS)/receivers/complete
	@:

# Python shows a trace at Ctrl-C: what it says is shown only where it failed by itself.
PLAINLY := 2>$(TOOLS)/uv.log || { code=$$?; [ $$code = 130 ] || cat $(TOOLS)/uv.log >&2; exit $$code; }

$(TOOLS)/uv/bin/uv:
	@echo "installing uv into $(TOOLS)/uv" >&2
	@rm -rf $(TOOLS)/uv $(TOOLS)/uv.new
	@python3 -m venv $(TOOLS)/uv.new $(PLAINLY)
	@$(TOOLS)/uv.new/bin/python -m pip install --quiet --disable-pip-version-check uv $(PLAINLY)
	@mv $(TOOLS)/uv.new $(TOOLS)/uv

.venv/complete: requirements-dev.txt pyproject.toml .python-version | $(UV)
	@echo "installing the project's environment" >&2
	@[ -e $@ ] || rm -rf $(@D)
	@rm -f $@
	@$(UV) venv --quiet --allow-existing --python 3.13 $(@D)
	@$(UV) pip sync --quiet --require-hashes --python $(@D) requirements-dev.txt $(OR_SAY)
	@$(UV) pip install --quiet --python $(@D) --no-deps --no-build-isolation --editable .
	@touch $@

$(TOOLS)/sam/complete $(TOOLS)/ministack/complete $(TOOLS)/checkov/complete $(TOOLS)/sdks/complete $(TOOLS)/receivers/complete: $(TOOLS)/%/complete: tests/local/%.txt .python-version | $(UV)
	@echo "installing $*" >&2
	@[ -e $@ ] || rm -rf $(@D)
	@rm -f $@
	@$(UV) venv --quiet --allow-existing --python 3.13 $(@D)
	@$(UV) pip sync --quiet --require-hashes --python $(@D) $< $(OR_SAY)
	@touch $@

# --- locks: names, versions and hashes, never an address ----------------------------------------------------------------

LOCKS := layers/taskhook/requirements.txt requirements-dev.txt tests/local/sam.txt tests/local/ministack.txt tests/local/checkov.txt tests/local/sdks.txt tests/local/receivers.txt
LOCK_TO ?= .
COMPILE := pip compile --quiet --universal --python-version 3.13 --generate-hashes --no-annotate --custom-compile-command "make lock"

.PHONY: lock
lock: | $(UV) ## resolve the locks again, keeping versions that still fit (ARGS=--upgrade for new ones)
	@for lock in $(LOCKS); do mkdir -p $(LOCK_TO)/$$(dirname $$lock) && { [ $(LOCK_TO) = . ] || cp $$lock $(LOCK_TO)/$$lock; } || exit 1; done
	@$(UV) $(COMPILE) $(ARGS) pyproject.toml -o $(LOCK_TO)/layers/taskhook/requirements.txt
	@$(UV) $(COMPILE) $(ARGS) --extra dev -c $(LOCK_TO)/layers/taskhook/requirements.txt pyproject.toml -o $(LOCK_TO)/requirements-dev.txt
	@$(UV) $(COMPILE) $(ARGS) tests/local/sam.in -o $(LOCK_TO)/tests/local/sam.txt
	@$(UV) $(COMPILE) $(ARGS) tests/local/ministack.in -o $(LOCK_TO)/tests/local/ministack.txt
	@$(UV) $(COMPILE) $(ARGS) tests/local/checkov.in -o $(LOCK_TO)/tests/local/checkov.txt
	@$(UV) $(COMPILE) $(ARGS) tests/local/sdks.in -o $(LOCK_TO)/tests/local/sdks.txt
	@$(UV) $(COMPILE) $(ARGS) tests/local/receivers.in -o $(LOCK_TO)/tests/local/receivers.txt
