# make          builds the program: build/cpu/calibatt
# make demo     calibrates the shipped model and makes videos, dense and calibrated
# make test     builds and runs every check; make test-python: those of the Python package that need torch
# make wheel    the Python package: dist/calibatt-….whl
# make install  PREFIX=/usr/local: program, library, headers, CMake package
# All of them install the system's packages that are missing. PRESET=cuda builds with the CUDA backend, in build/cuda.
JOBS     ?= $(shell nproc)
PREFIX   ?= /usr/local
PRESET   ?= cpu
BUILD    := build/$(PRESET)
CALIBATT := $(BUILD)/calibatt

.PHONY: all build install wheel demo test test-python format format-check tidy bench golden clean

all: build

build:
	@tools/install_dependencies.sh program
	@cmake --preset $(PRESET) >/dev/null
	@cmake --build --preset $(PRESET) -j $(JOBS) --target calibatt

install: build
	@cmake --install $(BUILD) --prefix $(PREFIX)

# With CUDA kernels where nvcc is. Its tools go to .venv-wheel.
wheel:
	@tools/install_dependencies.sh wheel
	@JOBS=$(JOBS) tools/wheel.sh

demo: build
	@tools/demo.sh $(CALIBATT)

# With CUDA where nvcc is, unless PRESET says cpu (make hands on what the command line sets, not the default above).
test:
	@tools/install_dependencies.sh tests
	@JOBS=$(JOBS) tools/test.sh

# The Python package against diffusers' pipelines; torch and diffusers go to .venv.
test-python: build
	@tools/install_dependencies.sh bench
	@tools/torch_environment.sh
	@CALIBATT_LIBRARY=$(CURDIR)/$(BUILD)/libcalibatt.so CALIBATT_PROGRAM=$(CURDIR)/$(CALIBATT) .venv/bin/python -m pytest -q tests/python

format:
	@git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format-14 -i

format-check:
	@tools/style.sh format

# clang-tidy over every source, a folder at a time; `make test` looks only at what changed since BASE, at each source by itself (tools/style.sh).
tidy:
	@tools/install_dependencies.sh tests
	@JOBS=$(JOBS) tools/style.sh tidy --all

# Kernel and end-to-end figures against their targets; torch, for the comparison with its CPU kernel, goes to .venv.
bench: build
	@tools/install_dependencies.sh bench
	@cmake --build --preset $(PRESET) -j $(JOBS) --target calibatt_bench
	@tools/bench.sh $(BUILD)

# Makes the golden data of tests/golden anew, with diffusers' and transformers' own classes (needs torch in .venv).
golden:
	@tools/golden/make_all.sh

clean:
	@rm -rf build out
