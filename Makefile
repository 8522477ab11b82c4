# Everything one does with a checkout. `make` alone lists the targets.
# Needs python3 (3.11 or newer) and make, nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The vault of `make demo`.
SOURCE ?= examples/vault
# Where pip finds PyTorch, if not where it looks anyway (README, "PyTorch without CUDA").
TORCH_INDEX ?=
# Which tests: a file, a folder or any words for pytest.
TEST ?= tests
# Which benchmarks: every file that runs by itself.
BENCH ?= $(basename $(notdir $(shell grep -l __main__ benchmarks/*.py 2>/dev/null)))
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help venv demo dev test check format docs bench clean distclean

help: ## Show this help
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP) ## Create the environment in .venv (again when the dependencies changed)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is `$(PYTHON) -V 2>&1`; Python 3.11 or newer is needed (make PYTHON=python3.12 …)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the dependencies into $(VENV) (a few minutes the first time; log: $(VENV)/install.log)"
	@# PyTorch first and by itself: a build for the CPU must be there before anything else asks for one with CUDA.
	@{ $(BIN)/python -m pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0 -c constraints.txt && \
		$(BIN)/python -m pip install -e '.[dev]' -c constraints.txt; } > $(VENV)/install.log 2>&1 || \
		{ grep -iE '^ *(error|fatal)|no space|hash' $(VENV)/install.log >&2; \
		  echo "error: the installation failed; all of it is in $(VENV)/install.log" >&2; exit 1; }
	@touch $@

demo: venv ## Build a lakehouse from a vault and search it (SOURCE=~/notes for your own)
	@$(BIN)/pkm demo --source "$(SOURCE)"

dev: venv ## Start the Dagster UI with its daemon on http://127.0.0.1:3000
	@$(BIN)/pkm dev

test: venv ## Run the tests (PKM_TEST_BUDGET=quick|ci|full, TEST=tests/cli)
	@$(BIN)/python -m pytest $(TEST)

check: venv ## Check format, style, types, layers, dependencies and generated docs
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright -p pyproject.toml
	@$(BIN)/pyright -p tests/pyrightconfig.json
	@$(BIN)/lint-imports
	@$(BIN)/python -m pip check
	@$(BIN)/python -m pkm_pipelines.cli.reference --check

format: venv ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: venv ## Write docs/commands.md and docs/settings.md anew
	@$(BIN)/python -m pkm_pipelines.cli.reference

bench: venv ## Run the benchmarks and print their tables (BENCH=pipeline for one)
	@for name in $(BENCH); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

clean: ## Remove caches, test output and the demos (your own data in .pkm stays)
	@rm -rf .ruff_cache .import_linter_cache .hypothesis .pytest_cache tests/output build dist .pkm/demo-*
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## Also remove the environment
	@rm -rf $(VENV) *.egg-info
