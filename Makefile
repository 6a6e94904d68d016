# make demo           set up, then print from JAX the sentence that the PyTorch course prints
# make test           set up, then prove every component equal to its PyTorch twin
# make check          lint and types
# make parity-table   the README's table of differences, measured here
# make clean          remove the environment

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

# uv where it is installed, else venv and pip. PyTorch runs on the CPU beside JAX, so uv is told to
# take that build; pip finds it by itself where one is offered.
ifneq ($(shell command -v uv),)
CREATE := uv venv -q --python $(PYTHON) $(VENV)
INSTALL := uv pip install -q --python $(BIN)/python --torch-backend cpu
else
CREATE := $(PYTHON) -m venv $(VENV)
INSTALL := $(BIN)/python -m pip install -q
endif

.PHONY: demo test check parity-table clean

demo: $(VENV)/.package
	@$(BIN)/obscura generate --model torch-seed:123 "Hello, I am" --max-new-tokens 6

test: $(VENV)/.test
	$(BIN)/python -m pytest -q -n 2

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

parity-table: $(VENV)/.test
	@$(BIN)/python tools/parity_table.py

clean:
	rm -rf $(VENV)

# One stamp for each set of packages, renewed when the files that name them change.
$(VENV)/.test: EXTRAS = [test]
$(VENV)/.dev: EXTRAS = [dev]
$(VENV)/.package $(VENV)/.test $(VENV)/.dev: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(CREATE)
	@echo "installing obscura_jax$(EXTRAS) into $(VENV) ..."
	@$(INSTALL) -c constraints.txt -e '.$(EXTRAS)'
	@touch $@
