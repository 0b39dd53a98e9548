# The two commands are `make demo` and `make test`; each sets up its own environment in .venv.
# PYTHON=... picks the interpreter (3.11 or newer), VENV=... the folder, PYTEST=... adds options,
# WORKERS=... is how many processes test (each grows to 6 GB).
PYTHON ?= python3
VENV ?= .venv
PYTEST ?=
WORKERS ?= logical --maxprocesses=4
EXTRAS := report,hub,gguf,train,test
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo check test lint typecheck clean

demo: $(READY)
	$(BIN)/jentropy demo

# The tests of the inner loop: all but a few that take most of the time.
check: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" $(PYTEST)

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Over the installed wheel: the packages' folders are mapped to other names there. What its users'
# type checkers find stands in tests/public_types.py.
typecheck: $(READY)
	rm -rf build
	$(BIN)/pip wheel -q --no-deps -w build/typecheck .
	$(BIN)/pip install -q --no-deps --target build/typecheck/site build/typecheck/*.whl
	cd build/typecheck && MYPYPATH=site:../../tests ../../$(BIN)/mypy --config-file ../../pyproject.toml \
	  -p jentropy -m public_types

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "jentropy needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo not found). Try: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf $(VENV) build demo-output *.egg-info
