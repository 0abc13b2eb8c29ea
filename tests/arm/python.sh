#!/usr/bin/env bash
# python.sh ROOT WHEEL PYTHON: the wheel for 64-bit ARM with PyTorch's aarch64 build in a Debian 12 for arm64, under qemu-user:
# `sparcl run seq-digits` there and, with the same arguments, by PYTHON here; the accuracies and the multiply-adds of both, and a
# failure where they differ by more than noise. ROOT is made by debootstrap (as root) where it is missing. EPOCHS=N shortens the
# run; few epochs leave the networks half trained, and their accuracies far apart.
# A Python of that root runs as one emulated process: nothing needs binfmt_misc, and nothing in the root is configured.
# PyTorch's wheels on PyPI for aarch64 are for CUDA from 2.11 on, and load NVIDIA's libraries even where none is used. So it is
# 2.10.0 that runs there, older than what sparcl asks for; TORCH_ARM=VERSION names another, TORCH_INDEX=URL an index that has it for
# the CPU (such as https://download.pytorch.org/whl/cpu).
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$1 wheel=$2 python=$3
mkdir -p "$(dirname "$root")"
if [ ! -e "$root/usr/bin/python3.11" ]; then
    if [ "$(id -u)" != 0 ] || ! command -v debootstrap >/dev/null; then
        echo "make test-arm needs root and debootstrap: apt-get install debootstrap" >&2
        exit 2
    fi
    mirror=${MIRROR:-}
    if [ -z "$mirror" ] && command -v apt-get >/dev/null; then
        mirror=$(apt-get indextargets --format '$(LABEL) $(REPO_URI)' | awk '$1 == "Debian" {print $2; exit}')
    fi
    rm -rf "$root.part"
    debootstrap --foreign --arch=arm64 --variant=minbase --include=python3,libstdc++6,libgomp1 bookworm "$root.part" \
        ${mirror:+"$mirror"} >"$root.log"
    for package in "$root.part"/var/cache/apt/archives/*.deb; do dpkg-deb -x "$package" "$root.part"; done
    mv "$root.part" "$root"
fi

site=$root/opt/site
if [ ! -e "$site/.done" ]; then
    platforms=$(printf -- '--platform manylinux_2_%s_aarch64 ' 28 27 26 24 17)
    download="$python -m pip install --quiet --target $site --python-version 3.11 --only-binary=:all: $platforms"
    # Without what it asks for: whether NVIDIA's packages are wanted would be asked of this machine and not of the emulated one.
    $download --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==${TORCH_ARM:-2.10.0}"
    $download filelock typing-extensions sympy networkx jinja2 fsspec numpy safetensors typer rich scikit-learn
    touch "$site/.done"
fi
rm -rf "$site"/sparcl "$site"/sparcl_edge-*
"$python" -m zipfile -e $wheel "$site"

emulated() {
    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "${QEMU_AARCH64:-qemu-aarch64}" -cpu max -L "$root" \
        -E PYTHONPATH="$site" "$root/usr/bin/python3.11" "$@"
}
arguments=(run seq-digits ${EPOCHS:+--epochs "$EPOCHS"} --threads 1 --backend native --seed 0)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
emulated -c 'import platform, torch; from sparcl import kernels
print(platform.machine(), torch.__version__, kernels.why_unavailable() or kernels.available_isas())'
"$python" -m sparcl "${arguments[@]}" --out "$work/here" >"$work/here.log"
emulated -m sparcl "${arguments[@]}" --out "$work/arm" >"$work/arm.log" || { tail -n 20 "$work/arm.log" >&2; exit 1; }
"$python" tests/arm/compare.py "$work/here/result.json" "$work/arm/result.json"
