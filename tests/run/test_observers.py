"""Losses, masks and pictures: the right figures, and the same ones through a stop."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparcl.checkpoint.tree import flatten, unflatten
from sparcl.errors import CheckpointError
from sparcl.run.observers import EVERY, SHOWN, LossCurve, MaskTrace, SampleTrace
from sparcl.run.thumbnails import SIDE, data_address, png
from sparcl.streams.task import Samples

Told = list[tuple[str, dict[str, Any]]]


def play(curve: LossCurve, first: int, last: int) -> None:
    """Steps of one epoch whose losses are 1, 2, 3, ..."""
    for step in range(first, last + 1):
        curve("step.end", {"step": step, "loss": torch.tensor(float(step))})


def test_losses_are_means_of_steps_and_of_epochs() -> None:
    told: Told = []
    curve = LossCurve(lambda event, figures: told.append((event, figures)))
    curve("epoch.begin", {})
    play(curve, 1, 2 * EVERY + 10)
    curve("epoch.end", {})
    curve("epoch.begin", {})
    curve("epoch.end", {})  # an epoch whose samples have all left
    assert told == [
        ("loss", {"loss": (1 + EVERY) / 2, "steps": EVERY}),
        ("loss", {"loss": (3 * EVERY + 1) / 2, "steps": EVERY}),
        ("loss.epoch", {"loss": (2 * EVERY + 11) / 2, "steps": 2 * EVERY + 10}),
    ]


@pytest.mark.parametrize("cut", [1, EVERY - 1, EVERY, EVERY + 3])
def test_losses_go_on_from_a_state(cut: int) -> None:
    whole: Told = []
    parts: Told = []
    curve = LossCurve(lambda event, figures: whole.append((event, figures)))
    first, second = (LossCurve(lambda event, figures: parts.append((event, figures))) for _ in range(2))
    curve("epoch.begin", {})
    first("epoch.begin", {})
    play(curve, 1, EVERY + 9)
    play(first, 1, cut)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    play(second, cut + 1, EVERY + 9)
    for one in (curve, second):
        one("epoch.end", {})
    assert parts == whole


def layered(*index: list[int]) -> Any:
    """What a Learner shows of its prunable layers, each of 3 x 5 weights."""
    layers = [SimpleNamespace(name=f"l{i}", shape=(3, 5), index=torch.tensor(at)) for i, at in enumerate(index)]
    return SimpleNamespace(sparsifier=SimpleNamespace(layers=layers))


def test_masks_are_compared_with_those_of_the_task_before_also_after_a_stop() -> None:
    told: Told = []
    first = MaskTrace(layered([0, 1, 2, 14], []), lambda event, figures: told.append((event, figures)))
    first("task.end", {"task": 0})
    second = MaskTrace(layered([0, 3, 14], [7]), lambda event, figures: told.append((event, figures)))
    state = {"masks": first.state_dict()}
    second.load_state_dict(unflatten(*flatten(state))["masks"])
    second("task.begin", {"task": 1})
    second("task.end", {"task": 1})
    assert [figures["layers"] for _, figures in told] == [
        {
            "l0": {"active": 4, "weights": 15, "overlap": None},
            "l1": {"active": 0, "weights": 15, "overlap": None},
        },
        {
            "l0": {"active": 3, "weights": 15, "overlap": 0.5},
            "l1": {"active": 1, "weights": 15, "overlap": None},
        },
    ]


def test_masks_of_another_network_are_refused_and_a_dense_one_has_none() -> None:
    told: Told = []
    trace = MaskTrace(layered([0]), lambda event, figures: told.append((event, figures)))
    with pytest.raises(CheckpointError, match="the last task's masks"):
        trace.load_state_dict([torch.zeros(3, dtype=torch.uint8)])
    dense = MaskTrace(layered(), lambda event, figures: told.append((event, figures)))
    dense("task.end", {"task": 0})
    assert told == []
    assert dense.state_dict() is None


def seen_by(inputs: Tensor, kept: list[int]) -> Any:
    samples = Samples(inputs, torch.arange(len(inputs)) % 2)
    keep = torch.zeros(len(inputs), dtype=torch.bool)
    keep[kept] = True
    return SimpleNamespace(
        task=SimpleNamespace(train=samples), sparsifier=SimpleNamespace(keep=lambda ids: ids[keep[ids]])
    )


def test_pictures_are_of_both_kinds_and_a_task_begun_anew_replaces_its_own(tmp_path: Path) -> None:
    file = tmp_path / "samples.json"
    inputs = torch.randint(0, 256, (40, 3, 6, 5), dtype=torch.uint8)
    for task in (0, 1, 0):
        SampleTrace(seen_by(inputs, list(range(30))), ["even", "odd"], file)("task.end", {"task": task})
    (entry,) = json.loads(file.read_text())["tasks"]
    assert (entry["task"], entry["removed"]["count"], entry["kept"]["count"]) == (0, 10, 30)
    assert [s["id"] for s in entry["removed"]["shown"]] == list(range(30, 40))
    assert len(entry["kept"]["shown"]) == SHOWN
    assert entry["removed"]["shown"][1] == {"id": 31, "label": "odd", "image": data_address(inputs[31])}


@pytest.mark.parametrize(
    ("inputs", "kept"), [(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), [0, 1, 2, 3]), (torch.zeros(4, 7), [0, 1])]
)
def test_nothing_is_written_where_nothing_left_or_there_are_no_pictures(
    tmp_path: Path, inputs: Tensor, kept: list[int]
) -> None:
    SampleTrace(seen_by(inputs, kept), ["a", "b"], tmp_path / "samples.json")("task.end", {"task": 0})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_the_pixels(channels: int) -> None:
    images = pytest.importorskip("PIL.Image")
    image = torch.randint(0, 256, (channels, 7, 5), dtype=torch.uint8)
    read = images.open(io.BytesIO(png(image)))
    assert read.mode == {1: "L", 3: "RGB"}[channels]
    assert bytes(read.tobytes()) == bytes(image.permute(1, 2, 0).contiguous().numpy().tobytes())
    large = data_address(torch.full((channels, 4 * SIDE, 2 * SIDE), 9, dtype=torch.uint8))
    small = images.open(io.BytesIO(base64.b64decode(large.partition(",")[2])))
    assert small.size == (SIDE // 2, SIDE)
    assert set(small.tobytes()) == {9}
