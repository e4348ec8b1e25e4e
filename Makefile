# `make` lists what there is. ARGS="…" is passed on to the program a target runs.

PYTHON  ?=
ARGS    ?=
WORKERS ?= 2
BENCH   ?= queries fanout sandboxes

VENV := .venv
PY   := $(VENV)/bin/python

export PYTHON VENV

.DEFAULT_GOAL := help
.PHONY: help serve test nightly check format lock graphiql bench clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: ## Serve on http://localhost:8000, e.g. make serve ARGS="--port 9000".
	@deploy/environment requirements.lock
	@exec $(PY) -m app serve $(ARGS)

test: ## Run the tests on the servers they need, e.g. make test ARGS="tests/models -k migration".
	@deploy/environment requirements.lock requirements-dev.lock
	@exec $(PY) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

nightly: ## Hold plans to graphql-core's answers over 20,000 documents.
	@deploy/environment requirements.lock requirements-dev.lock
	@NOOSPHERE_TEST_DIFFERENTIAL_CASES=20000 $(PY) -m pytest tests/schema/differential $(ARGS)

check: ## Check format, lint, types and layers: exactly what CI runs.
	@deploy/environment requirements.lock requirements-dev.lock
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'

format: ## Rewrite the code as `make check` wants it.
	@deploy/environment requirements.lock requirements-dev.lock
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

lock: ## Resolve pyproject.toml anew into both lock files (ARGS="--upgrade" for newer versions).
	@deploy/lock $(ARGS)

graphiql: ## Rebuild the GraphiQL bundle (needs Node.js; the built bundle is committed).
	cd app/graphiql && npm ci && npm run build

bench: ## Run the benchmarks, or some: make bench BENCH=queries.
	@deploy/environment requirements.lock requirements-dev.lock
	@set -e; for name in $(BENCH); do echo "== $$name"; $(PY) -m "benchmarks.$$name" $(ARGS); done

clean: ## Remove the environment and every cache; data/ stays.
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	rm -rf app/graphiql/node_modules
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
