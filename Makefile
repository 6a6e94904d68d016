# make demo           set up, then print from JAX the sentence that the PyTorch course prints, and
#                     what the shipped model says
# make test           set up, then prove every component equal to its PyTorch twin
# make test-x64      set up, then test generation where JAX makes 64-bit numbers
# make test-tpu       set up with libtpu, then compile for a TPU that is not here
# make check          lint and types
# make notebooks      set up, then run them from a clean kernel: the outputs must be the committed ones
# make notebooks-write  the same, keeping the new outputs
# make parity-table   the README's table of differences, measured here
# make tiny           train the shipped model again (about 15 minutes on two cores), and score it
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

DECODING := $(addprefix tests/test_,generate.py stream.py sampling.py score.py generate_simple.py)

.PHONY: demo test test-x64 test-tpu check notebooks notebooks-write parity-table tiny clean

demo: $(VENV)/.package
	@$(BIN)/obscura generate --model torch-seed:123 "Hello, I am" --max-new-tokens 6
	@$(BIN)/obscura generate "The for statement" --max-new-tokens 40

test: $(VENV)/.test
	$(BIN)/python -m pytest -q -n 2

test-x64: $(VENV)/.test
	JAX_ENABLE_X64=1 $(BIN)/python -m pytest -q -n 2 $(DECODING)

test-tpu: $(VENV)/.tpu
	$(BIN)/python -c "import libtpu"
	$(BIN)/python -m pytest -q tests/test_topology.py

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: $(VENV)/.test
	$(BIN)/python tools/run_notebooks.py

notebooks-write: $(VENV)/.test
	$(BIN)/python tools/run_notebooks.py --write

parity-table: $(VENV)/.test
	@$(BIN)/python tools/parity_table.py

tiny: $(VENV)/.package
	$(BIN)/python tools/tiny_text.py build/tiny/text
	$(BIN)/obscura train --text build/tiny/text/train.txt --out build/tiny/run --preset tiny \
	  --stride 64 --val-fraction 0.02 --batch-size 8 --steps 2600 --learning-rate 4e-3 --warmup-steps 100 \
	  --end-lr-fraction 0.02 --validate-every 200 --save-every 200
	$(BIN)/python tools/tiny_pack.py build/tiny/run/model obscura_jax/models/tiny
	$(BIN)/python tools/tiny_score.py obscura_jax/models/tiny build/tiny/text

clean:
	rm -rf $(VENV)

# One stamp for each set of packages, renewed when the files that name them change.
$(VENV)/.test: EXTRAS = [test]
$(VENV)/.dev: EXTRAS = [dev]
$(VENV)/.tpu: EXTRAS = [test,tpu]
$(VENV)/.package $(VENV)/.test $(VENV)/.dev $(VENV)/.tpu: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(CREATE)
	@echo "installing obscura_jax$(EXTRAS) into $(VENV) ..."
	@$(INSTALL) -c constraints.txt -e '.$(EXTRAS)'
	@touch $@
