# ARM as far as emulation goes, and C libraries other than glibc. Needs g++-aarch64-linux-gnu, qemu-user and, for the root,
# debootstrap (as root). The musl builds need Zig, a C++ compiler with a libc++ for musl: `pip install ziglang`, in an
# environment of its own, and ZIG='that/python -m ziglang'. Included by the Makefile at the root, after devices.mk.
ZIG ?= zig
ARM := build/arm
ARM_ROOT ?= $(ARM)/root
ARM_DEVICE := $(ARM)/sparcl-device
EMPTY :=
.PHONY: sparcl-device-musl sparcl-device-aarch64-musl sparcl-device-aarch64-counted sparcl-device-aarch64-scalar
.PHONY: test-arm test-arm-device test-arm-python count-neon

# $(call musl,NAME,ARCHITECTURE)
define musl
	$(CMAKE) -S . -B $(PROGRAM)/$(1) -DSPARCL_PROGRAM=ON -DSPARCL_IMAGES=OFF -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=$(2) \
		"-DCMAKE_CXX_COMPILER=$(subst $(EMPTY) ,;,$(strip $(ZIG)));c++;-target;$(2)-linux-musl" > /dev/null
	$(CMAKE) --build $(PROGRAM)/$(1) --target sparcl-device --parallel
	@echo "built: $(PROGRAM)/$(1)/sparcl-device, $$(wc -c < $(PROGRAM)/$(1)/sparcl-device) bytes"
endef

sparcl-device-musl:  ## sparcl-device for this machine with musl in place of glibc, by Zig (ZIG='python -m ziglang')
	$(call musl,musl,x86_64)

sparcl-device-aarch64-musl:  ## the same for a phone or a Pi
	$(call musl,aarch64-musl,aarch64)

# For count-neon: with the names of functions.
sparcl-device-aarch64-counted:
	$(CMAKE) -S . -B $(PROGRAM)/aarch64-counted -DSPARCL_PROGRAM=ON -DSPARCL_SYMBOLS=ON $(AARCH64) > /dev/null
	$(CMAKE) --build $(PROGRAM)/aarch64-counted --target sparcl-device --parallel

# The plain kernels are vectors of four lanes, too, which the compiler makes NEON of; without SIMD they are scalars. For count-neon.
sparcl-device-aarch64-scalar:
	$(CMAKE) -S . -B $(PROGRAM)/aarch64-scalar -DSPARCL_PROGRAM=ON $(AARCH64) \
		-DSPARCL_PLAIN_OPTIONS=-march=armv8-a+nosimd > /dev/null
	$(CMAKE) --build $(PROGRAM)/aarch64-scalar --target sparcl-device --parallel

# A program of its own that runs the other, as the tests want one.
$(ARM_DEVICE): tests/arm/arm.mk
	mkdir -p $(ARM)
	printf '#!/bin/sh\nexec %s -cpu cortex-a53 %s "$$@"\n' "$$(command -v $(QEMU_AARCH64))" \
		$(abspath $(PROGRAM)/aarch64/sparcl-device) > $@
	chmod +x $@

$(ARM)/insn.so: tests/arm/insn.c
	mkdir -p $(ARM)
	$(CC) -O2 -Wall -Wextra -shared -fPIC -fvisibility=hidden $< -o $@

count-neon: sparcl-device-aarch64-counted sparcl-device-aarch64-scalar $(ARM)/insn.so $(READY)  ## instructions of a training step on an emulated ARM, NEON against plain (docs/device.md)
	$(BIN)/python tests/arm/count.py --qemu $(QEMU_AARCH64) --plugin $(abspath $(ARM)/insn.so) \
		--program $(PROGRAM)/aarch64-counted/sparcl-device --scalar $(PROGRAM)/aarch64-scalar/sparcl-device \
		--functions $(or $(FUNCTIONS),12) --nm $(subst g++,nm,$(CXX_AARCH64))

test-arm: test-arm-device test-arm-python  ## digits by sparcl-device and by Python on an emulated 64-bit ARM; an hour (docs/device.md)

test-arm-device: sparcl-device sparcl-device-aarch64 $(ARM_DEVICE) $(READY)
	SPARCL_DEVICE=$(abspath $(ARM_DEVICE)) $(BIN)/python -m pytest tests/device/test_same_as_python.py
	$(BIN)/python tests/arm/digits.py --here $(PROGRAM)/native/sparcl-device --arm $(ARM_DEVICE) --seeds $(or $(SEEDS),2)

test-arm-python: wheel-aarch64
	tests/arm/python.sh $(abspath $(ARM_ROOT)) $(WHEEL_AARCH64) $(BIN)/python
