# make quickstart | make test: each makes .venv, installs and runs. Needs a Python 3.12 (plain, pyenv or uv) and make.
PYTHON := $(shell command -v python3.12 >/dev/null 2>&1 && python3.12 -c '' >/dev/null 2>&1 && echo python3.12 || echo python3)
BIN := .venv/bin
# One thread for each worker, which keeps the memory that it frees, as the commands do.
WORKER := OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=1073741824

.PHONY: quickstart test slow audit check rooms wheel-test clean

quickstart: .venv/installed
	$(BIN)/pyro-smat quickstart

test: .venv/installed
	$(WORKER) $(BIN)/python -m pytest -n auto --dist worksteal

slow: .venv/installed
	$(WORKER) $(BIN)/python -m pytest -n auto --dist worksteal -m slow

# Known vulnerabilities of what is installed, where the list of them can be reached; they are printed and fail nothing.
audit: .venv/installed
	@if $(BIN)/python -m pip install --quiet pip-audit; then \
		$(BIN)/python -m pip_audit --skip-editable --timeout 10 || echo "audit: see above: advisories, or none to be had"; \
	else echo "audit: skipped, pip-audit cannot be installed here"; fi

check: .venv/installed rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=build/rooms $(BIN)/mypy -p pyro_smat
	cd build/rooms && ../../$(BIN)/lint-imports --config ../../.importlinter --no-cache

# mypy and import-linter read the rooms where they import from: a copy of the checkout, laid out as it installs.
rooms:
	@rm -rf build/rooms && mkdir -p build/rooms && cp -r pyro_smat build/rooms/ && cp -r models guides inference build/rooms/pyro_smat/

# Install the wheel into an environment of its own and use it from another folder.
wheel-test: .venv/installed
	$(BIN)/python -m build --wheel --outdir build/wheel .
	$(BIN)/python tests/wheel_smoke.py build/wheel/*.whl

.venv/installed: pyproject.toml
	@if command -v uv >/dev/null 2>&1 && ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then \
		uv venv --seed --python 3.12 .venv; \
	else \
		$(PYTHON) -c 'import sys; sys.exit("pyro-smat needs Python 3.12 or newer; found " + sys.version if sys.version_info < (3, 12) else 0)' \
		&& $(PYTHON) -m venv .venv; \
	fi
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info
