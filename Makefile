# The two commands of the README: `make demo` (build, then calibrate and compare on the shipped model) and `make test`.
JOBS   ?= $(shell nproc)
BUILD  := build/cpu
CALIBATT := $(BUILD)/calibatt

.PHONY: all build dependencies demo test test-unit test-sanitize format format-check tidy bench golden clean

all: build

# Debian packages that are missing, and nothing when none is.
dependencies:
	@tools/install_dependencies.sh

build: dependencies
	@cmake --preset cpu >/dev/null
	@cmake --build --preset cpu -j $(JOBS)

demo: build
	@tools/demo.sh $(CALIBATT)

test: build
	@JOBS=$(JOBS) tools/test.sh

format:
	@git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format -i

format-check:
	@git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format --dry-run --Werror

tidy: dependencies
	@cmake --preset tidy >/dev/null
	@cmake --build --preset tidy -j $(JOBS)

# Kernel and end-to-end figures against their targets; torch, for the comparison with its CPU kernel, goes to .venv.
bench: build
	@tools/bench.sh $(BUILD)

# Makes the golden data of tests/golden anew, with diffusers' and transformers' own classes (needs torch in .venv).
golden:
	@tools/golden/make_all.sh

clean:
	@rm -rf build out
