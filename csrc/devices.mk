# What goes to a device: the program sparcl-bench, which needs neither Python nor PyTorch, and a wheel for 64-bit ARM.
# Needs cmake, and for aarch64 g++-aarch64-linux-gnu; its tests need qemu-user. Included by the Makefile at the root, after
# portability.mk.

CMAKE ?= cmake
PROGRAM := build/program
AARCH64 := -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(CXX_AARCH64)

.PHONY: fault-device fuzz-device sparcl-device sparcl-device-sanitized sparcl-device-aarch64 test-device-sanitized
.PHONY: sparcl-device-races test-device-races program program-aarch64 test-program wheel-aarch64 test-wheel-aarch64

sparcl-device:  ## sparcl-device for this machine, one static file that learns without Python (docs/device.md)
	$(CMAKE) -S . -B $(PROGRAM)/native -DSPARCL_PROGRAM=ON > /dev/null
	$(CMAKE) --build $(PROGRAM)/native --target sparcl-device --parallel
	@echo "built: $(PROGRAM)/native/sparcl-device, $$(wc -c < $(PROGRAM)/native/sparcl-device) bytes"

sparcl-device-sanitized:
	$(CMAKE) -S . -B $(PROGRAM)/sanitized -DSPARCL_PROGRAM=ON -DSPARCL_SANITIZE=ON > /dev/null
	$(CMAKE) --build $(PROGRAM)/sanitized --target sparcl-device --parallel
	@echo "built: $(PROGRAM)/sanitized/sparcl-device, $$(wc -c < $(PROGRAM)/sanitized/sparcl-device) bytes"

test-device-sanitized: sparcl-device-sanitized $(READY)  ## sparcl-device's tests under AddressSanitizer and UndefinedBehaviorSanitizer
	SPARCL_DEVICE=$(abspath $(PROGRAM)/sanitized/sparcl-device) ASAN_OPTIONS=allocator_may_return_null=1 $(BIN)/python -m pytest tests/device

sparcl-device-races:
	$(CMAKE) -S . -B $(PROGRAM)/races -DSPARCL_PROGRAM=ON -DSPARCL_RACES=ON > /dev/null
	$(CMAKE) --build $(PROGRAM)/races --target sparcl-device --parallel
	@echo "built: $(PROGRAM)/races/sparcl-device, $$(wc -c < $(PROGRAM)/races/sparcl-device) bytes"

test-device-races: sparcl-device-races $(READY)  ## sparcl-device's tests under ThreadSanitizer
	SPARCL_DEVICE=$(abspath $(PROGRAM)/races/sparcl-device) TSAN_OPTIONS=halt_on_error=1 $(BIN)/python -m pytest tests/device

fuzz-device: sparcl-device $(READY)  ## five minutes of mutated files and images for sparcl-device (SECONDS=300)
	OMP_NUM_THREADS=1 $(BIN)/python tests/device/fuzzing_device.py $(PROGRAM)/native/sparcl-device --seconds $(or $(SECONDS),300)

fault-device: sparcl-device $(READY)  ## sparcl-device killed or stopped at 200 random moments
	OMP_NUM_THREADS=1 $(BIN)/python tests/device/killing_device.py $(PROGRAM)/native/sparcl-device --kills 200

sparcl-device-aarch64:  ## the same for a phone or a Pi
	$(CMAKE) -S . -B $(PROGRAM)/aarch64 -DSPARCL_PROGRAM=ON $(AARCH64) > /dev/null
	$(CMAKE) --build $(PROGRAM)/aarch64 --target sparcl-device --parallel
	@echo "built: $(PROGRAM)/aarch64/sparcl-device, $$(wc -c < $(PROGRAM)/aarch64/sparcl-device) bytes"

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

# The headers are those of this machine's Python: CPython's configuration has the same sizes on all 64-bit Linux. Where the
# cross compiler fails the wheel comes without its compiled part, and the check says so. manylinux_2_35: Ubuntu 22.04,
# Debian 12, Raspberry Pi OS of 2023 and newer.
EMPTY :=
WHEEL_AARCH64 = dist/sparcl_edge-*-manylinux_2_35_aarch64.whl
PYTHON_VERSION = $(shell $(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
CPYTHON = $(subst .,,$(PYTHON_VERSION))

wheel-aarch64: $(READY)  ## dist/*aarch64.whl, cross-compiled for this environment's version of Python
	rm -f $(WHEEL_AARCH64)
	SKBUILD_CMAKE_ARGS="$(subst $(EMPTY) ,;,$(AARCH64))" SETUPTOOLS_EXT_SUFFIX=.cpython-$(CPYTHON)-aarch64-linux-gnu.so \
		$(BIN)/pip wheel --quiet --no-deps -C wheel.tags=cp$(CPYTHON)-cp$(CPYTHON)-manylinux_2_35_aarch64 -w dist .
	$(BIN)/python tests/kernels/check_wheel.py $(WHEEL_AARCH64)

# AARCH64_ROOT: a folder with a Python for aarch64 and its libraries, such as Debian's arm64 packages of python3.11-minimal,
# libpython3.11-minimal, libpython3.11-stdlib, libc6, libstdc++6, libgcc-s1, zlib1g and libexpat1, unpacked by dpkg-deb -x.
test-wheel-aarch64: wheel-aarch64  ## import the wheel's compiled part on an emulated ARM; needs AARCH64_ROOT=DIR
	$(QEMU_AARCH64) -cpu cortex-a53 -L $(AARCH64_ROOT) $(AARCH64_ROOT)/usr/bin/python$(PYTHON_VERSION) \
		tests/kernels/check_wheel.py $(WHEEL_AARCH64)
