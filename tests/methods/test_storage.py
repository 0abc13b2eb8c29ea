"""How the buffer holds samples: float16, JPEG, and what of it a checkpoint gives back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import Net, blobs, make_learner

import sparcl
from sparcl import Learner, methods
from sparcl.checkpoint import Store, tree
from sparcl.errors import CheckpointError, ConfigError, DataError
from sparcl.methods import AGEM, FDR, METHODS, DERpp, ICaRL, ReservoirBuffer
from sparcl.methods.method import RehearsalMethod
from sparcl.methods.storage import Blobs, make_storage
from sparcl.nn import ConvNet
from sparcl.streams import Samples, Task, make_task

REHEARSAL = {name: kind for name, kind in METHODS.items() if issubclass(kind, RehearsalMethod)}
SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 8, "backend": "reference"}


def pictures(tasks: int = 2, size: int = 16, seed: int = 0) -> list[Task]:
    """Smooth uint8 pictures [3, size, size], two classes a task."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for t in range(tasks):
        labels = torch.arange(24) % 2 + 2 * t
        coarse = torch.rand(24, 3, 4, 4, generator=generator) + labels.view(-1, 1, 1, 1)
        smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear") * 50
        made.append(Task(t, (2 * t, 2 * t + 1), Samples(smooth.to(torch.uint8), labels)))
    return made


def test_float16_takes_half_the_bytes_and_comes_out_as_float32_rounded_once() -> None:
    x, y, generator = torch.randn(9, 2, 3, 3), torch.arange(9), torch.Generator().manual_seed(0)
    buffer, raw = ReservoirBuffer(20, storage="float16"), ReservoirBuffer(20)
    for one in (buffer, raw):
        one.make_room(x, 0, generator)
        one.add(x, y, None, generator)
    assert torch.equal(buffer.recall(), x.half().float())
    assert buffer.kind() == raw.kind()
    labels = 16 * 8  # rows double up to the capacity
    assert (buffer.nbytes() - labels) * 2 == raw.nbytes() - labels


def test_a_jpeg_is_near_the_picture_and_its_bytes_are_counted() -> None:
    x = pictures(1, size=64)[0].train.inputs
    storage = make_storage("jpeg")
    held = storage.stored(x)
    assert isinstance(held, Blobs)
    again = storage.inputs(held, torch.device("cpu"))
    assert again.dtype == torch.uint8
    assert again.shape == x.shape
    assert float((again.float() - x.float()).abs().mean()) < 3.0
    assert sum(len(item) for item in held.items) < held.nbytes < x.nbytes / 3
    grey = storage.stored(x[:, :1])
    assert storage.inputs(grey, torch.device("cpu")).shape == (24, 1, 64, 64)


def test_jpegs_of_so_many_bytes_never_take_more_and_leave_a_sample_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    x, noise = pictures(1, size=32)[0].train.inputs, torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8)
    buffer = ReservoirBuffer(None, max_bytes=20_000, storage="jpeg")
    buffer.make_room(x, 3, generator)
    for inputs in (x, x, noise, noise):  # noise takes several times as much
        for part, label in zip(inputs.split(8), torch.arange(24).split(8), strict=True):
            buffer.add(part, label, torch.zeros(8, 3), generator)
            assert buffer.nbytes() <= 20_000
            assert len(buffer.inputs) == len(buffer) == len(buffer.labels) == len(buffer.logits)
    assert 5 < len(buffer) < 20
    again = ReservoirBuffer(None, max_bytes=20_000, storage="jpeg")
    again.load_state_dict(buffer.state_dict())
    assert tree.difference(again.state_dict(), buffer.state_dict()) is None
    with pytest.raises(ConfigError, match="are too few"):
        ReservoirBuffer(None, max_bytes=500, storage="jpeg").make_room(x, 3, generator)


@pytest.mark.parametrize(
    ("storage", "inputs", "said"),
    [
        ("float16", torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "float16 is for floating inputs, not uint8"),
        ("float16", torch.full((2, 3), 1e5), "up to 65504, and the task's inputs go to 100000"),
        ("jpeg", torch.zeros(2, 3, 4, 4), r"not for float32 \[3, 4, 4\]"),
        ("jpeg", torch.zeros(2, 4, 4, 4, dtype=torch.uint8), r"not for uint8 \[4, 4, 4\]"),
    ],
)
def test_what_a_form_does_not_hold_is_refused_before_any_work(storage: str, inputs: torch.Tensor, said: str) -> None:
    buffer = ReservoirBuffer(20, storage=storage)
    with pytest.raises(DataError, match=said):
        buffer.make_room(inputs, 0, torch.Generator())
    assert len(buffer) == 0


@pytest.mark.parametrize("method", REHEARSAL)
@pytest.mark.parametrize("kept", ["bytes", "bytes, balanced", "jpeg", "jpeg of bytes", "float16"])
def test_every_rehearsal_method_keeps_what_it_is_told_to_and_goes_on_to_the_same_bits_or_refuses(
    tmp_path: Path, method: str, kept: str
) -> None:
    by_task = REHEARSAL[method].fills_by_task
    options: dict[str, Any] = {
        "bytes": {"buffer_bytes": "20kB"},
        "jpeg": {"buffer_size": 9, "buffer_storage": "jpeg"},
    }.get(kept, {"buffer_bytes": "9kB", "buffer_storage": "jpeg"})
    if kept == "bytes, balanced":
        options = {"buffer_bytes": 20_000, "buffer_policy": "balanced"}
    tasks = pictures()
    if kept == "float16":
        options = {"buffer_size": 12, "buffer_storage": "float16"}
        tasks = [Task(t.index, t.classes, Samples(t.train.inputs.float() / 64, t.train.labels)) for t in tasks]
    if by_task and kept in ("bytes, balanced", "jpeg of bytes"):
        with pytest.raises((ConfigError, TypeError), match=r"fills its buffer once a task|buffer_policy"):
            REHEARSAL[method](**options)
        return

    def made(**more: Any) -> sparcl.Learner:
        torch.manual_seed(0)
        return sparcl.Learner(ConvNet(4, 3, 8), REHEARSAL[method](**options), sparcl.SparCL(0.7), **SETTINGS, **more)

    whole = made(checkpoint_dir=tmp_path, checkpoint_every=4)
    for task in tasks:
        whole.learn(task)
    buffer, end = whole.method.buffer, whole.checkpoint_state()
    assert buffer.seen >= 8
    assert len(buffer) >= 4
    if "buffer_bytes" in options:
        assert buffer.nbytes() <= buffer.max_bytes
        assert buffer.nbytes() > 0.4 * buffer.max_bytes
    for folder in sorted(tmp_path.glob("step-*")):
        again = sparcl.Learner.load(folder, backend="reference")
        for task in tasks[again.learned :]:
            again.learn(task)
        assert tree.difference(again.checkpoint_state(), end) is None
    assert whole.predict(tasks[0].train.inputs[:3]).probabilities.isfinite().all()


def jpeg_state() -> tree.State:
    learner = sparcl.Learner(ConvNet(4, 3, 8), DERpp(9, buffer_storage="jpeg"), **SETTINGS)
    learner.learn(pictures()[0])
    return learner.checkpoint_state()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: b["inputs"].__setitem__(slice(0, 40), 0), "is damaged"),
        (lambda b: b.update(inputs=b["inputs"][:-1]), "JPEGs"),
        (lambda b: b["lengths"].__setitem__(0, -1), "lengths in the checkpoint has entries outside"),
        (lambda b: b.update(lengths=b["lengths"][:-1]), "lengths"),
        (lambda b: b.pop("lengths"), "lacks 'lengths'"),
        (lambda b: b.update(inputs=b["inputs"].float()), "JPEGs"),
    ],
)
def test_jpegs_that_were_bent_are_refused(tmp_path: Path, change: Any, said: str) -> None:
    state = jpeg_state()
    state["learner"]["method"]["buffer"] = {
        k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state["learner"]["method"]["buffer"].items()
    }
    change(state["learner"]["method"]["buffer"])
    Store(tmp_path).save(1, state)
    with pytest.raises(CheckpointError, match=said):
        sparcl.Learner.load(tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"buffer_size": 5, "buffer_bytes": 9000}, "give one of them"),
        ({"buffer_policy": "fifo"}, "unknown buffer policy 'fifo'; allowed: reservoir, balanced"),
        ({"buffer_storage": "png"}, "unknown buffer storage 'png'; allowed: raw, float16, jpeg"),
        ({"buffer_bytes": "much"}, "buffer bytes of 'much' is not allowed"),
    ],
)
def test_what_cannot_be_kept_so_is_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        methods.ER(**options)


def test_a_default_buffer_has_the_state_that_it_always_had() -> None:
    learner = make_learner(sparsifier=None)
    learner.learn(blobs()[0])
    assert set(learner.method.state_dict()["buffer"]) == {"seen", "inputs", "labels", "logits"}
    assert methods.ER().buffer.capacity == 200


@pytest.mark.parametrize("make", [AGEM, FDR, ICaRL])
def test_bytes_count_all_that_a_memory_of_equal_shares_holds(make: Any) -> None:
    method, most = make(buffer_bytes=20_000), 20_000
    learner = Learner(Net(), method, batch_size=10)
    for task in blobs(2, per_class=60):
        learner.learn(task)
        assert 0.9 * most < method.buffer.nbytes() <= most


def test_half_precision_refuses_what_it_cannot_hold_of_samples_that_were_not_looked_at() -> None:
    held = make_storage("float16")
    held.check(torch.ones(2, 3))
    with pytest.raises(DataError, match="holds numbers up to 65504"):
        held.stored(torch.full((2, 3), 7e4))


def test_one_sample_that_half_precision_cannot_hold_leaves_a_buffer_that_is_whole(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(200, 2, 6, 6)).astype(np.float32)
    x[5] = 1e6  # not among the samples that are looked at when the task begins
    np.save(tmp_path / "x.npy", x)
    task = make_task(np.load(tmp_path / "x.npy", mmap_mode="r"), np.arange(200) % 4)
    learner = Learner(Net(), methods.ER(20, buffer_storage="float16"), batch_size=10, classes=())
    for _ in range(2):
        with pytest.raises(DataError, match="float16 holds numbers up to 65504"):
            learner.learn(task)
    assert len(learner.method.buffer.recall()) == min(learner.steps * 10, 20) > 0
    learner.save(tmp_path)
    Learner.load(tmp_path, Net())
