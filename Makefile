# Everything from a fresh clone: each target creates the virtual environment, installs, compiles, then runs.
# A later run repeats only what changed. PYTHON chooses the interpreter: make test PYTHON=python3.12

PYTHON ?= python3
DEMO_IMAGE ?= examples/bccd/BloodImage_00031.jpg
DEMO_OUT ?= demo
TEST_WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/base.stamp
INSTALLED := $(VENV)/installed.stamp

.PHONY: demo test test-cuda test-gpu lint benchmark clean

demo: $(INSTALLED)
	$(BIN)/refinedet detect bccd $(DEMO_IMAGE) --out $(DEMO_OUT)
	@echo "The annotated picture is $(DEMO_OUT)/$(notdir $(DEMO_IMAGE))"

test: $(INSTALLED)
	$(BIN)/python -m pytest tests --numprocesses $(TEST_WORKERS) --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

benchmark: $(INSTALLED)
	$(BIN)/python -m pytest benchmarks -o python_files='bench_*.py' --benchmark-enable

# What takes longer than a minute, on the CPU: the CUDA operators, called through torch; their kernels, simulated under
# several schedules in every call; the mutations of the kernels.
test-cuda: $(INSTALLED)
	$(BIN)/python -m pytest tests -m 'long and not gpu' --numprocesses $(TEST_WORKERS)

# On a machine with a GPU, where `make test` runs the short ones as well; fails where there is none.
test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest tests -m gpu

clean:
	rm -rf build dist refinedet.egg-info refinedet/*.so $(DEMO_OUT) $(INSTALLED)

# One command for torch and torchvision: only then does pip choose two releases that fit each other.
# The others are build-system.requires of pyproject.toml, needed for --no-build-isolation below.
$(BASE):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install 'torch>=2.10' torchvision 'setuptools>=77' 'pybind11>=3' ninja
	touch $@

# Compiles against the torch just installed instead of downloading a second one.
$(INSTALLED): $(BASE) setup.py cuda_build.py refinedet/profiling/resources.py pyproject.toml $(shell find csrc)
	$(BIN)/pip install --no-build-isolation --editable '.[test]'
	touch $@
