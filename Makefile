# make demo    set up, then print from JAX the sentence that the PyTorch course prints
# make test    set up, then prove every component equal to its PyTorch twin
# make check   lint and types        make parity-table    the README's table of differences

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
CONSTRAINTS := -c constraints.txt
# torch runs on the CPU here, beside JAX: uv is told to take the CPU build.
INSTALL := $(if $(shell command -v uv),uv pip install -q --python $(BIN)/python --torch-backend cpu,$(BIN)/python -m pip install -q)
CREATE := $(if $(shell command -v uv),uv venv -q --python $(PYTHON) $(VENV),$(PYTHON) -m venv $(VENV))

.PHONY: demo test check parity-table clean

demo: $(VENV)/.package
	$(BIN)/obscura generate --model torch-seed:123 "Hello, I am" --max-new-tokens 6

test: $(VENV)/.test
	$(BIN)/python -m pytest -q -n 2

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

parity-table: $(VENV)/.test
	$(BIN)/python tools/parity_table.py

clean:
	rm -rf $(VENV)

# One stamp for each set of packages; a changed pyproject.toml or constraints.txt renews it.
$(VENV)/.package: EXTRAS =
$(VENV)/.test: EXTRAS = [test]
$(VENV)/.dev: EXTRAS = [dev]
$(VENV)/.package $(VENV)/.test $(VENV)/.dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(CREATE)
	$(INSTALL) $(CONSTRAINTS) -e '.$(EXTRAS)'
	touch $@
