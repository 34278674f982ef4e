# Everything from a fresh clone: each target creates the virtual environment, installs, compiles, then runs.
# A later run repeats only what changed. PYTHON chooses the interpreter: make test PYTHON=python3.12
# TORCH is what pip is told to install torch by, into a new .venv. The build for the CPU:
#     make demo TORCH="torch torchvision --index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
# One command for both: only then does pip choose two releases that fit each other.
TORCH ?= 'torch>=2.10' torchvision
DEMO_IMAGE ?= examples/bccd/BloodImage_00031.jpg
DEMO_OUT ?= demo
TEST_WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/base.stamp
DEMO_INSTALLED := $(VENV)/demo.stamp
INSTALLED := $(VENV)/installed.stamp
WITH_PEERS := $(VENV)/peers.stamp
CPP := $(shell find csrc benchmarks/guard examples tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')
SOURCES := setup.py cuda_build.py tools/ptxas.py pyproject.toml $(shell find csrc)

.PHONY: demo test test-cuda test-gpu gpu-report lint benchmark bench-check bench-accept fuzz clean

# What `make test` has installed will do.
demo: $(if $(wildcard $(INSTALLED)),$(INSTALLED),$(DEMO_INSTALLED))
	$(BIN)/refinedet detect bccd $(DEMO_IMAGE) --out $(DEMO_OUT)
	@echo "The annotated picture is $(DEMO_OUT)/$(notdir $(DEMO_IMAGE))"

test: $(INSTALLED)
	$(BIN)/python -m pytest tests --numprocesses $(TEST_WORKERS) --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

# Everything, in some half an hour. ARGS="-m quick": one image in float32, a minute; ARGS='-k "nms and batch8"': as pytest
# chooses; ARGS=--benchmark-autosave: the numbers are kept, and `pytest-benchmark compare` shows those of two commits.
benchmark: $(WITH_PEERS)
	$(BIN)/python -m pytest benchmarks -o python_files='bench_*.py' --benchmark-enable --benchmark-quiet $(ARGS)

# What operators, kernels and calls cost, beside the committed baseline (docs/guard.md). Needs valgrind and nvcc.
bench-check: $(INSTALLED)
	$(BIN)/python benchmarks/guard check $(ARGS)

# Renews the baseline: make bench-accept REASON="why it may cost more"
export REASON
bench-accept: $(INSTALLED)
	$(BIN)/python benchmarks/guard accept --reason "$$REASON" $(ARGS)

# What takes longer than a minute, on the CPU: the CUDA operators, called through torch; their kernels, simulated under
# several schedules in every call; the mutations of the kernels.
test-cuda: $(INSTALLED)
	$(BIN)/python -m pytest tests -m 'long and not gpu' --numprocesses $(TEST_WORKERS) --dist worksteal

# On a machine with a GPU, where `make test` runs the short ones as well; fails where there is none.
test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest tests -m gpu

# Everything a GPU can tell, in nine minutes (docs/profiling.md); ARGS=--dry-run: every part on the CPU. It installs
# nothing: it takes the interpreter that PYTHON names, else that of .venv, where `make test` has made one.
gpu-report:
	$(if $(and $(filter file,$(origin PYTHON)),$(wildcard $(INSTALLED))),$(BIN)/python,$(PYTHON)) benchmarks/gpu_report $(ARGS)

# Damaged inputs of every kind, others every time (tests/fuzz/README.md); ARGS="--seed 7 --only coco --count 100".
fuzz: $(INSTALLED)
	$(BIN)/python tests/fuzz $(ARGS)

clean:
	rm -rf build dist refinedet.egg-info refinedet/*.so $(DEMO_OUT) $(DEMO_INSTALLED) $(INSTALLED) $(WITH_PEERS)

# The second line: build-system.requires of pyproject.toml, needed for --no-build-isolation below.
$(BASE):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(TORCH)
	$(BIN)/pip install 'setuptools>=77' 'pybind11>=3' ninja
	touch $@

# Without isolation it compiles against the torch just installed instead of downloading a second one.
# For the demo: the CUDA kernels for the GPUs of this machine; without a GPU none, not those of seven architectures.
$(DEMO_INSTALLED): $(BASE) $(SOURCES)
	REFINEDET_CUDA=$${REFINEDET_CUDA:-$$($(BIN)/python -c 'import cuda_build; print("auto" if cuda_build.visible_gpus() else 0)')} \
	    $(BIN)/pip install --no-build-isolation --editable .
	touch $@

# For the tests: the kernels wherever nvcc is, since most of their tests need no GPU.
$(INSTALLED): $(BASE) $(SOURCES)
	$(BIN)/pip install --no-build-isolation --editable '.[test]'
	touch $@

# For the benchmarks: also the packages that operators are measured beside and that bring much with them.
$(WITH_PEERS): $(INSTALLED)
	$(BIN)/pip install --no-build-isolation --editable '.[benchmark]'
	touch $@
