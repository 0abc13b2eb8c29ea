# The kernels away from this processor: the same cases replayed natively on each instruction set, under sanitizers, on an
# emulated ARMv8 and on an emulated x86-64 that has no AVX. Needs g++-aarch64-linux-gnu and qemu-user.
# Included by the Makefile at the root.

, := ,
REPLAY := build/replay
REPLAY_CASES := $(REPLAY)/cases.bin
REPLAY_COMMON := tests/kernels/replay.cpp csrc/kernels/dispatch.cpp csrc/engine/arena.cpp csrc/engine/layers.cpp csrc/engine/parallel.cpp csrc/engine/pass.cpp csrc/engine/plan.cpp csrc/engine/tiles.cpp csrc/kernels/unit_plain.cpp
REPLAY_SOURCES := tests/kernels/replay.cpp $(wildcard csrc/kernels/* csrc/engine/*)
REPLAY_FLAGS := -std=c++17 -Icsrc -Wall -Wextra -ffp-contract=fast -fno-math-errno -pthread
AVX2 := -mavx2 -mfma
AVX512 := -mavx512f -mavx512dq -mavx512vl -mavx512bw -mfma -mprefer-vector-width=512
CXX_AARCH64 ?= aarch64-linux-gnu-g++
QEMU_AARCH64 ?= qemu-aarch64
QEMU_X86_64 ?= qemu-x86_64

.PHONY: test-portability test-native test-sanitized test-sanitized-bindings test-races test-aarch64 test-no-avx

test-portability: test-native test-sanitized test-sanitized-bindings test-races test-aarch64 test-no-avx test-program  ## replay 680 cases on every instruction set and emulator (the program too)

$(REPLAY_CASES): tests/kernels/write_cases.py tests/kernels/cases.py | $(READY)
	mkdir -p $(REPLAY)
	$(BIN)/python tests/kernels/write_cases.py $@

# $(call x86,NAME,FLAGS): a replay program with all x86-64 units
define x86
	mkdir -p $(REPLAY)
	$(CXX) $(REPLAY_FLAGS) $(2) $(AVX2) -c csrc/kernels/unit_avx2.cpp -o $(REPLAY)/$(1)-avx2.o
	$(CXX) $(REPLAY_FLAGS) $(2) $(AVX512) -c csrc/kernels/unit_avx512.cpp -o $(REPLAY)/$(1)-avx512.o
	$(CXX) $(REPLAY_FLAGS) $(2) $(REPLAY_COMMON) $(REPLAY)/$(1)-avx2.o $(REPLAY)/$(1)-avx512.o -o $(REPLAY)/$(1)
endef

$(REPLAY)/native: $(REPLAY_SOURCES)
	$(call x86,native,-O3)

$(REPLAY)/sanitized: $(REPLAY_SOURCES)
	$(call x86,sanitized,-O1 -g -fsanitize=address$(,)undefined -fno-sanitize-recover=all)

$(REPLAY)/races: $(REPLAY_SOURCES)
	$(call x86,races,-O1 -g -fsanitize=thread)

$(REPLAY)/aarch64: $(REPLAY_SOURCES)
	mkdir -p $(REPLAY)
	$(CXX_AARCH64) $(REPLAY_FLAGS) -O3 $(REPLAY_COMMON) csrc/kernels/unit_neon.cpp -o $@

# What this processor has, best first; the emulated ones need no list.
test-native: $(REPLAY)/native $(REPLAY_CASES)  ## the cases on each instruction set of this processor
	for isa in $$($(BIN)/python -c "from sparcl import kernels; print(*kernels.available_isas())"); do \
		SPARCL_ISA=$$isa $< $(REPLAY_CASES) || exit 1; done

test-sanitized: $(REPLAY)/sanitized $(REPLAY_CASES)  ## the cases under AddressSanitizer and UndefinedBehaviorSanitizer
	for isa in $$($(BIN)/python -c "from sparcl import kernels; print(*kernels.available_isas())"); do \
		SPARCL_ISA=$$isa $< $(REPLAY_CASES) || exit 1; done

# Python itself is not instrumented and leaks at its end: leaks are not looked for. MIN_ALLOC: a block that is too large is an error
# that the tests expect. test_allocator is of glibc's malloc, which the sanitizer replaces. What the arena lends is forbidden to all others (csrc/engine/arena.cpp).
BINDINGS := build/bindings
SANITIZERS := LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1

test-sanitized-bindings: $(READY)  ## the kernels' tests through Python, compiled part and arena under the same sanitizers
	rm -rf $(BINDINGS)
	$(BIN)/pip wheel --quiet --no-deps -C cmake.define.SPARCL_SANITIZE=ON -w $(BINDINGS) .
	$(BIN)/python -m zipfile -e $(BINDINGS)/*.whl $(BINDINGS)
	$(SANITIZERS) $(BIN)/python tests/kernels/under_sanitizers.py $(BINDINGS)/sparcl/kernels/_native.*so tests/kernels -p no:cacheprovider \
		--ignore tests/kernels/test_program.py --ignore tests/kernels/test_allocator.py

test-races: $(REPLAY)/races $(REPLAY_CASES)  ## the cases under ThreadSanitizer
	$< $(REPLAY_CASES)

test-aarch64: $(REPLAY)/aarch64 $(REPLAY_CASES)  ## the cases on an emulated ARMv8.0
	for isa in neon plain; do SPARCL_ISA=$$isa $(QEMU_AARCH64) -L /usr/aarch64-linux-gnu -cpu cortex-a53 $< $(REPLAY_CASES) || exit 1; done

test-no-avx: $(REPLAY)/native $(REPLAY_CASES)  ## the cases on an emulated x86-64 without AVX: no illegal instruction
	$(QEMU_X86_64) -cpu Nehalem $< $(REPLAY_CASES)
