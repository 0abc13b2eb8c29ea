# What goes to a device: the program sparcl-bench, which needs neither Python nor PyTorch.
# Needs cmake, and for aarch64 g++-aarch64-linux-gnu; its tests need qemu-user. Included by the Makefile at the root, after
# portability.mk.

CMAKE ?= cmake
PROGRAM := build/program
AARCH64 := -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(CXX_AARCH64)

.PHONY: program program-aarch64 test-program

program:  ## sparcl-bench for this machine: build/program/native/sparcl-bench
	$(CMAKE) -S . -B $(PROGRAM)/native -DSPARCL_PROGRAM=ON > /dev/null
	$(CMAKE) --build $(PROGRAM)/native --parallel
	@echo "built: $(PROGRAM)/native/sparcl-bench"

program-aarch64:  ## sparcl-bench for a phone or a Pi, one static file: build/program/aarch64/sparcl-bench
	$(CMAKE) -S . -B $(PROGRAM)/aarch64 -DSPARCL_PROGRAM=ON $(AARCH64) > /dev/null
	$(CMAKE) --build $(PROGRAM)/aarch64 --parallel
	@echo "built: $(PROGRAM)/aarch64/sparcl-bench"

test-program: program-aarch64  ## a training step's loss and gradients on emulated ARM processors
	for cpu in cortex-a53 max; do for isa in neon plain; do \
		SPARCL_ISA=$$isa $(QEMU_AARCH64) -cpu $$cpu $(PROGRAM)/aarch64/sparcl-bench --check || exit 1; done; done
