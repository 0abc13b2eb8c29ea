"""Arguments of another type than is meant, and arrays that are none: one line each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sparcl import online, streams
from sparcl.errors import SparclError

X = np.arange(24 * 64, dtype=np.float64).reshape(24, 1, 8, 8)
Y = np.arange(24) % 4
STREAM = streams.from_arrays(X, Y)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: streams.from_arrays(X, Y, classes_per_task=2.0), "4 classes do not split into tasks of 2.0"),
        (lambda: streams.from_arrays(X, Y, classes_per_task=True), "4 classes do not split into tasks of True"),
        (lambda: streams.from_arrays(X, Y, class_order_seed="a"), "class order seed is 'a': allowed are 0 to"),
        (lambda: streams.from_arrays(X, Y, class_order_seed=1.5), "class order seed is 1.5: allowed are 0 to"),
        (lambda: streams.from_arrays(X, Y, limit_per_class="3"), "limit per class is '3': it must be at least 1"),
        (lambda: streams.from_arrays(X, Y, limit_per_class=2.5), "limit per class is 2.5: it must be at least 1"),
        (lambda: streams.from_arrays(X, Y, class_names={"a", "b", "c", "d"}), "a list of names is needed"),
        (lambda: streams.seq_digits(limit_per_class=True), "limit per class is True"),
        (lambda: streams.seq_cifar10(None), "data None is not allowed; use the path of a folder"),
        (lambda: streams.folder(3), "data 3 is not allowed; use the path of a folder"),
        (lambda: streams.folder("a\0b"), "data 'a.x00b' is not allowed"),
        (lambda: streams.folder(".", resize=2.5), "resize is 2.5: allowed are a side or"),
        (lambda: streams.blurry(STREAM, "a"), "blur 'a' is not allowed"),
        (lambda: streams.blurry(STREAM, disjoint="a"), "disjoint 'a' is not allowed"),
        (lambda: streams.blurry(STREAM, seed=1.5), "seed is 1.5: allowed are 0 to"),
        (lambda: streams.blurry(None), "a NoneType is no stream"),
        (lambda: streams.single_pass(STREAM[0]), "a Task is no stream"),
        (lambda: streams.single_pass(STREAM, 2.5), "batch size 2.5 is not allowed; use 1 or more"),
        (lambda: streams.single_pass(STREAM, skip="1"), "skip '1' is not allowed"),
        (lambda: online(None, STREAM), "online takes a Learner and a Stream"),
    ],
)
def test_another_type_than_is_meant_is_one_line(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(SparclError, match=told) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (torch.zeros(24, 1, 8, 8, device="meta"), "training inputs are a tensor that is sparse, quantized or without"),
        (torch.zeros(24, 1, 8, 8).to_sparse(), "training inputs are a tensor that is sparse, quantized or without"),
        (np.ma.masked_array(X, mask=X > 9), "training inputs are masked in part, which has no effect here"),
    ],
)
def test_what_only_looks_like_an_array_is_one_line(inputs: Any, told: str) -> None:
    with pytest.raises(SparclError, match=told) as caught:
        streams.from_arrays(inputs, Y)
    assert "\n" not in str(caught.value)


def test_a_mask_that_hides_nothing_is_none() -> None:
    made = streams.from_arrays(np.ma.masked_array(X, mask=X < 0), Y)
    assert made.fingerprint == STREAM.fingerprint
