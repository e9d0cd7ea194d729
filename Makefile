# Targets: setup demo test check fix bench docs docs-test package clean. PYTHON, WORKERS and TORCH_INDEX may be given, e.g.
#   make setup TORCH_INDEX=URL   installs torch and torchvision from that index first (the CPU build, say)
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
# two processes of one thread take half as long as one of two threads, which wait for each other
WORKERS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test check fix bench docs docs-test package clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "cswap needs Python 3.11 or newer: make setup PYTHON=python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	if [ -n "$(TORCH_INDEX)" ]; then $(BIN)/python -m pip install --quiet --index-url "$(TORCH_INDEX)" "torch>=2.6" torchvision; fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $(STAMP)

demo: setup
	$(BIN)/cswap demo

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: setup
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: setup
	$(BIN)/ruff format src tests benchmarks examples
	$(BIN)/ruff check --fix src tests benchmarks examples

bench: setup
	$(BIN)/python benchmarks/prune_resnet18.py
	$(BIN)/python benchmarks/effects_path.py
	$(BIN)/python benchmarks/effects_growth.py
	$(BIN)/python benchmarks/effects_speed.py

docs: setup
	$(BIN)/python -m mkdocs build --strict

docs-test: setup
	$(BIN)/python -m pytest tests/test_docs.py tests/test_packaging.py

# wheel and sdist; then the wheel in an environment of its own, with nothing else in it, and the demo there
package: setup
	$(BIN)/python -m build --outdir dist
	rm -rf .venv-package && $(PYTHON) -m venv .venv-package
	if [ -n "$(TORCH_INDEX)" ]; then .venv-package/bin/python -m pip install --quiet --index-url "$(TORCH_INDEX)" "torch>=2.6" torchvision; fi
	wheel=$$(ls -t dist/*.whl | head -1) && .venv-package/bin/python -m pip install --quiet "$$wheel[demo]"
	cd /tmp && $(CURDIR)/.venv-package/bin/cswap demo --force --out $$(mktemp -d)

clean:
	rm -rf $(VENV) .venv-package dist site cswap-demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
