# The two commands a newcomer needs are `make demo` and `make test`; both set up .venv first. `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
MUTANTS ?= 200000
SEED ?= 1
MATRIX_PYTHON ?= $(shell for candidate in python3.13 "$$HOME"/.pyenv/versions/3.13.*/bin/python; do \
  "$$candidate" -c '' 2>/dev/null && echo "$$candidate" && break; done)
CXX_SOURCES := $(wildcard cpu_kernels/src/*.cc cpu_kernels/src/*.h)
CXX_TESTS := $(wildcard tests/cpu_kernels/native/*.cc tests/cpu_kernels/native/*.h)
BUILD_INPUTS := pyproject.toml uv.lock CMakeLists.txt $(CXX_SOURCES)
NATIVE_TEST := tests/cpu_kernels/native/kernels_test
AARCH64_CXX := aarch64-linux-gnu-g++
INSTALLED := $(VENV)/.installed
VOCABS := build/vocabs
TEST_WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test slow evals ray vocabs fuzz bench aot metal oracles lint format test-matrix sanitize aarch64 portable pure clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## fetch a small model and generate text
	$(BIN)/realm generate smollm2 --chat --prompt "Explain in two sentences why the sky is blue." -n 96

test: $(INSTALLED) ## run the tests that continuous integration runs (TEST_WORKERS=2 processes, some gigabytes each)
	$(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --dist loadfile $(ARGS)

slow: $(INSTALLED) ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

evals: $(INSTALLED) ## run lm-evaluation-harness, which it installs first, on tasks that are here
	UV_PROJECT_ENVIRONMENT=$(VENV) $(BIN)/uv sync --frozen --inexact --extra test --extra eval
	$(BIN)/python -m pytest -m evals $(ARGS)

ray: $(INSTALLED) ## run batch jobs on a Ray cluster of this machine of which one worker is killed; installs Ray first
	UV_PROJECT_ENVIRONMENT=$(VENV) $(BIN)/uv sync --frozen --inexact --extra test --extra ray
	$(BIN)/python -m pytest -m ray $(ARGS)

vocabs: $(VOCABS)/.fetched ## compare the tokenizers with llama.cpp's vocabulary files, which it fetches
	REALM_TEST_VOCABS=$(VOCABS) $(BIN)/python -m pytest -m vocabs $(ARGS)

fuzz: $(INSTALLED) ## open mutated GGUF files (MUTANTS=200000, SEED=1)
	PYTHONPATH=. $(BIN)/python tests/gguf/fuzz.py --mutants $(MUTANTS) --seed $(SEED)

# llama.cpp's own kernels for AMX crash on some virtual machines: it is built without them.
PEER_FLAGS = $(shell flags="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"; \
  echo | $(CC) $$flags -E - >/dev/null 2>&1 && echo "$$flags")

bench: $(INSTALLED) ## measure speed, start and the null step beside llama.cpp, which it compiles first
	UV_PROJECT_ENVIRONMENT=$(VENV) $(BIN)/uv sync --frozen --inexact --extra test --extra bench \
	  --config-settings-package "llama-cpp-python:cmake.define.CMAKE_C_FLAGS=$(PEER_FLAGS)" \
	  --config-settings-package "llama-cpp-python:cmake.define.CMAKE_CXX_FLAGS=$(PEER_FLAGS)"
	$(BIN)/python -m benchmarks $(ARGS)

aot: $(VENV)/.created ## compile kernels and whole steps for H100, A100 and TPUs, which need not be here
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "The plug-ins are pinned for Python 3.11: make aot VENV=build/venv-3.11 PYTHON=python3.11" >&2; exit 1; }
	UV_PROJECT_ENVIRONMENT=build/venv-aot $(BIN)/uv sync --frozen --extra test --extra aot --python $(BIN)/python
	build/venv-aot/bin/python tests/aot/report.py $(ARGS)
	$(if $(ARGS),,build/venv-aot/bin/python -m pytest -m aot tests/aot)

metal: $(VENV)/.created ## lower whole steps for Apple GPUs, which need not be here, and check the numbers of MLX's primitives
	@test -n "$(MATRIX_PYTHON)" || { echo "Python 3.13 was not found; name one: make metal MATRIX_PYTHON=..." >&2; exit 1; }
	UV_PROJECT_ENVIRONMENT=build/venv-metal $(BIN)/uv sync --frozen --extra test --extra metal --no-dev --python "$(MATRIX_PYTHON)"
	MACOSX_DEPLOYMENT_TARGET=14.0 $(BIN)/uv pip install --quiet --target build/jax-mps --python-platform aarch64-apple-darwin \
	  --python-version 3.13 --no-deps --only-binary :all: --require-hashes -r tests/metal/plugin.txt
	build/venv-metal/bin/python -m pytest tests/metal $(ARGS)

oracles: ## record the tiny models of tests/data anew, with torch in an environment of its own
	PYTHON=$(PYTHON) tests/oracles/record.sh

lint: $(INSTALLED) ## check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES) $(CXX_TESTS)
	$(BIN)/cmake -S . -B build/lint -DPython_EXECUTABLE=$(abspath $(BIN)/python) -DCMAKE_EXPORT_COMPILE_COMMANDS=ON >/dev/null
	printf '%s\n' $(filter %.cc,$(CXX_SOURCES)) | xargs -P 2 -n 1 $(BIN)/clang-tidy -p build/lint --quiet
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(INSTALLED) ## rewrite the sources in the house format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_SOURCES) $(CXX_TESTS)

test-matrix: ## run the tests on Python 3.13 with the newest supported jax as well
	@test -n "$(MATRIX_PYTHON)" || { echo "Python 3.13 was not found; name one: make test-matrix MATRIX_PYTHON=..." >&2; exit 1; }
	$(MAKE) test VENV=build/venv-3.13 PYTHON="$(MATRIX_PYTHON)"

sanitize: $(INSTALLED) ## run the kernels' tests in C++ hardly optimised, and under the address, undefined behaviour and thread sanitizers
	$(call native_test,o1,-DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS=-O1)
	build/o1/$(NATIVE_TEST)
	$(call native_test,asan,-DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS="-O1 -fsanitize=address$(comma)undefined -fno-sanitize-recover=all")
	build/asan/$(NATIVE_TEST)
	$(call native_test,tsan,-DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS="-O1 -fsanitize=thread")
	TSAN_OPTIONS=halt_on_error=1 build/tsan/$(NATIVE_TEST)

aarch64: $(INSTALLED) ## run them compiled for aarch64, on an emulated CPU with dot products and on one without
	@command -v $(AARCH64_CXX) >/dev/null && command -v qemu-aarch64 >/dev/null || { \
	  echo "A compiler and an emulator are needed: apt-get install g++-aarch64-linux-gnu qemu-user" >&2; exit 1; }
	$(call native_test,aarch64,-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -DCMAKE_CXX_COMPILER=$(AARCH64_CXX) -DCMAKE_EXE_LINKER_FLAGS=-static)
	qemu-aarch64 -cpu max build/aarch64/$(NATIVE_TEST) portable neon_dotprod
	qemu-aarch64 -cpu cortex-a53 build/aarch64/$(NATIVE_TEST) portable

portable: $(INSTALLED) ## run the kernels' tests on a library without optional instruction sets
	UV_PROJECT_ENVIRONMENT=build/venv-portable $(BIN)/uv sync --frozen --extra test --no-dev --python $(BIN)/python \
	  --config-settings-package realm-jax:cmake.define.REALM_PORTABLE=ON
	build/venv-portable/bin/python -c 'import cpu_kernels as c; assert c.available_instruction_sets() == (c.InstructionSet.PORTABLE,)'
	build/venv-portable/bin/python -m pytest tests/cpu_kernels tests/ops $(ARGS)

# The setting changes nothing but the place in uv's cache, where a library built with a compiler lies otherwise.
pure: $(INSTALLED) ## run some tests on an installation that was made without a C++ compiler
	CXX=/bin/false UV_PROJECT_ENVIRONMENT=build/venv-pure $(BIN)/uv sync --frozen --extra test --no-dev --python $(BIN)/python \
	  --config-settings-package realm-jax:build.verbose=true
	PATH=$(abspath build/venv-pure/bin) python -m pytest tests/cpu_kernels tests/ops $(ARGS)

clean: ## remove what the other targets made
	rm -rf $(VENV) build

# Configures and builds the tests in C++ in build/$1 with the options $2.
comma := ,
define native_test
$(BIN)/cmake -S . -B build/$1 -DREALM_BUILD_TESTS=ON $2 >/dev/null
$(BIN)/cmake --build build/$1 --parallel 2
endef

# The standard library makes the environment and pip installs uv into it, so that a machine needs neither beforehand.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

$(INSTALLED): $(VENV)/.created $(BUILD_INPUTS)
	UV_PROJECT_ENVIRONMENT=$(VENV) $(BIN)/uv sync --frozen --extra test --compile-bytecode
	@touch $@

$(VOCABS)/.fetched: tests/oracles/fetch_vocabs.py | $(INSTALLED)
	$(BIN)/python $< --cache $(VOCABS)
	@touch $@
