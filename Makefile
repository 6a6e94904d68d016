# make demo             install, print from JAX the sentence that the PyTorch course prints, and
#                       let the shipped model generate text
# make test             install, and compare every component with its PyTorch twin
# make test-all         the same, with slow tests and more rounds of random trials
# make test-x64         install, and test generation with 64-bit numbers
# make test-tpu         install libtpu, and test compiling for a TPU without having one
# make test-newest      run `make demo` and `make test` with Python 3.13 and the newest JAX, in a Debian
#                       13 that is installed in build/newest
# make test-gpu         install JAX's CUDA plugin in an environment of its own, and test compiling for
#                       NVIDIA GPUs without having one
# make newcomer         run the README's commands, without the tests, in a clean clone, and compare
#                       their outputs with the README
# make test-browser     install, and test the page of `obscura look` in Chromium, which is installed if
#                       it is missing and apt-get can
# make wheel            build the wheel and the source distribution into dist
# make check            check lint and types
# make notebooks        install, run the notebooks, and compare their outputs with the committed ones
# make notebooks-write  run the notebooks, and save their outputs
# make docs             install, and build the site in build/site
# make parity-table     measure the differences from PyTorch, and save them in docs/data
# make tables           write the measured figures in docs/data into the pages
# make tiny             train the shipped model again (about 15 minutes on two cores), and score it
# make clean            remove the environments

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
CUDA_VENV ?= .venv-cuda

# Use uv if it is installed, otherwise venv and pip. PyTorch only runs on the CPU, so uv must take
# the CPU build; pip finds it if the index has one.
ifneq ($(shell command -v uv),)
CREATE := uv venv -q --python $(PYTHON) $(VENV)
INSTALL := uv pip install -q --python $(BIN)/python --torch-backend cpu
else
CREATE := $(PYTHON) -m venv $(VENV)
INSTALL := $(BIN)/python -m pip install -q
endif

# The newest JAX is tested with Python 3.13; constraints.txt has the last one for Python 3.11. The shell
# asks the Python of the environment, which uv may have chosen.
FROM_3_13 := import sys; print("-newest" if sys.version_info >= (3, 13) else "")
CONSTRAINTS ?= constraints$$($(BIN)/python -c '$(FROM_3_13)').txt

CHROMIUM ?= /usr/bin/chromium
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)

DECODING := $(addprefix tests/test_,generate.py stream.py sampling.py score.py generate_simple.py)

.PHONY: demo test test-all test-x64 test-newest newcomer test-tpu test-gpu test-browser wheel check \
  notebooks notebooks-write docs parity-table tables tiny clean

demo: $(VENV)/.package
	@$(BIN)/obscura generate --model torch-seed:123 "Hello, I am" --max-new-tokens 6
	@$(BIN)/obscura generate "The for statement" --max-new-tokens 40

test: $(VENV)/.test
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

test-all: $(VENV)/.test
	OBSCURA_LONG_TESTS=1 $(BIN)/python -m pytest -q -n 2

test-x64: $(VENV)/.test
	JAX_ENABLE_X64=1 $(BIN)/python -m pytest -q -n 2 $(DECODING)

test-newest:
	tests/newest.sh demo test

newcomer: $(VENV)/.test
	$(BIN)/python -m tests.support.newcomer

test-tpu: $(VENV)/.tpu
	$(BIN)/python -c "import libtpu"
	$(BIN)/python -m pytest -q -n 2 tests/test_topology.py

# With the CUDA plugin and no GPU, JAX prints a traceback unless it is told to use the CPU. So the
# plugin is in an environment of its own.
test-gpu:
	$(MAKE) VENV=$(CUDA_VENV) $(CUDA_VENV)/.cuda
	JAX_PLATFORMS=cpu $(CUDA_VENV)/bin/python -m pytest -q -n 2 tests/test_gpu_topology.py \
	  tests/test_cuda_commands.py tests/test_gpu_kernels.py tests/test_gpu_executables.py

test-browser: $(VENV)/.test
	@test -x $(CHROMIUM) || { $(AS_ROOT) apt-get update -q; $(AS_ROOT) apt-get install -q -y chromium; } || \
	  { echo "make test-browser needs Chromium; install it, and set CHROMIUM to its path" >&2; exit 1; }
	CHROMIUM=$(CHROMIUM) $(BIN)/python -m pytest -q -n 2 tests/browser

wheel: $(VENV)/.test
	rm -rf dist
	$(BIN)/python -m build --no-isolation

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: $(VENV)/.test
	$(BIN)/python -m tests.support.notebooks

notebooks-write: $(VENV)/.test
	$(BIN)/python -m tests.support.notebooks --write

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

parity-table: $(VENV)/.test
	$(BIN)/python -m tests.parity.table --save

tables: $(VENV)/.test
	$(BIN)/python -m docs.hooks.measured

tiny: $(VENV)/.package
	$(BIN)/python tools/tiny_text.py build/tiny/text
	$(BIN)/obscura train --text build/tiny/text/train.txt --out build/tiny/run --preset tiny \
	  --stride 64 --val-fraction 0.02 --batch-size 8 --steps 2600 --learning-rate 4e-3 --warmup-steps 100 \
	  --end-lr-fraction 0.02 --validate-every 200 --save-every 200
	$(BIN)/python tools/tiny_pack.py build/tiny/run/model obscura_jax/models/tiny
	$(BIN)/python tools/tiny_score.py obscura_jax/models/tiny build/tiny/text

clean:
	rm -rf $(VENV) $(CUDA_VENV) .venv-newest build/newest build/newest.part

# One stamp per set of packages, renewed when the files that list them change.
$(VENV)/.test: EXTRAS = [test]
$(VENV)/.dev: EXTRAS = [dev]
$(VENV)/.docs: EXTRAS = [docs]
$(VENV)/.tpu: EXTRAS = [test,tpu]
$(VENV)/.cuda: EXTRAS = [test,cuda-compile]
$(VENV)/.package $(VENV)/.test $(VENV)/.dev $(VENV)/.docs $(VENV)/.tpu $(VENV)/.cuda: pyproject.toml $(wildcard constraints*.txt)
	@test -x $(BIN)/python || $(CREATE)
	@echo "installing obscura_jax$(EXTRAS) into $(VENV) ..."
	@$(INSTALL) -c $(CONSTRAINTS) -e '.$(EXTRAS)'
	@touch $@
