"""Milliseconds that augmentation and normalisation cost for one batch: `python benchmarks/augment.py [threads]`."""

import statistics
import sys
import time

import torch

from sparcl.streams.augment import CIFAR_MEAN, CIFAR_STD, Normalize, Transform


def milliseconds(shape: tuple[int, ...], repeats: int = 300) -> float:
    """Median of one call on uint8 images of `shape` [N, C, H, W]."""
    transform = Transform(Normalize(CIFAR_MEAN, CIFAR_STD), crop_padding=4, flip=True)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        transform.train(inputs, generator)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[20:])


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    for name, shape in (("CIFAR", (32, 3, 32, 32)), ("Tiny-ImageNet", (32, 3, 64, 64))):
        print(f"{name}: {milliseconds(shape):.3f} ms for a batch of {shape[0]}")
