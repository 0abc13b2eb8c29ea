"""What a run keeps of its course for those who look at it later: losses, masks and the samples that left.

Each is an observer of the Learner and of the log's writer; each goes on from a checkpoint to the same records.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparcl import regular
from sparcl.checkpoint import checks
from sparcl.learner import Learner
from sparcl.run.record import MAX_RESULT, write_atomically
from sparcl.run.thumbnails import data_address, shows
from sparcl.streams.task import Samples

Write = Callable[[str, dict[str, Any]], None]
"""Appends an event with its figures to events.jsonl."""

EVERY = 50
"""Steps that one `loss` event is the mean of."""

SHOWN = 12
"""Pictures of the removed, and of the kept, samples of a task."""


class LossCurve:
    """Writes the mean loss of every `EVERY` steps (`loss`) and of each epoch (`loss.epoch`).

    On an accelerator the sums stay there until they are written, so that no step waits for them.
    """

    def __init__(self, write: Write) -> None:
        self.write = write
        self._sums: dict[str, float | Tensor] = {"loss": 0.0, "loss.epoch": 0.0}
        self._steps = {"loss": 0, "loss.epoch": 0}

    def __call__(self, event: str, figures: Mapping[str, Any]) -> None:
        """Observe an event of the Learner."""
        if event == "epoch.begin":
            for name in self._sums:
                self._sums[name], self._steps[name] = 0.0, 0
        elif event == "step.end":
            loss = figures["loss"]
            value = loss.item() if loss.device.type == "cpu" else loss
            for name in self._sums:
                self._sums[name] = self._sums[name] + value
                self._steps[name] += 1
            if figures["step"] % EVERY == 0:
                self._tell("loss")
        elif event == "epoch.end":
            self._tell("loss.epoch")

    def _tell(self, name: str) -> None:
        if steps := self._steps[name]:
            self.write(name, {"loss": float(self._sums[name]) / steps, "steps": steps})
        self._sums[name], self._steps[name] = 0.0, 0

    def state_dict(self) -> dict[str, list[float | int]]:
        """JSON values."""
        return {name: [float(total), self._steps[name]] for name, total in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        for name in self._sums:
            total, steps = state[name]
            self._sums[name], self._steps[name] = float(total), checks.integer(steps, "steps of a mean loss")


class MaskTrace:
    """Writes at each task's end how dense every prunable layer is, and how much of its last mask it still has.

    The event `masks` holds by layer name `active` and `weights` (counts) and `overlap`: of the positions that were
    active at the end of the task before, the share that is active now (null after the first task).
    """

    def __init__(self, learner: Learner, write: Write) -> None:
        self.learner, self.write = learner, write
        self._before: list[Tensor] | None = None

    def __call__(self, event: str, figures: Mapping[str, Any]) -> None:
        """Observe an event of the Learner."""
        layers = self.learner.sparsifier.layers
        if event != "task.end" or not layers:
            return
        now = [_mask(layer.index, torch.Size(layer.shape).numel()) for layer in layers]
        before = self._before or [torch.zeros(0, dtype=torch.bool)] * len(now)
        told = {
            layer.name: {"active": int(mask.sum()), "weights": mask.numel(), "overlap": _overlap(mask, earlier)}
            for layer, mask, earlier in zip(layers, now, before, strict=True)
        }
        self.write("masks", {"task": figures["task"], "layers": told})
        self._before = now

    def state_dict(self) -> list[Tensor] | None:
        """The masks at the end of the last task, bool [weights] each, as uint8 of eight bits."""
        return None if self._before is None else [_packed(mask) for mask in self._before]

    def load_state_dict(self, state: Any) -> None:
        """Go on from `state_dict()`."""
        if state is None:
            self._before = None
            return
        sizes = [torch.Size(layer.shape).numel() for layer in self.learner.sparsifier.layers]
        masks = [
            checks.tensor(packed, "the last task's masks", torch.uint8, (-(-size // 8),))
            for packed, size in zip(state, sizes, strict=True)
        ]
        self._before = [_unpacked(packed, size) for packed, size in zip(masks, sizes, strict=True)]


def _mask(index: Tensor, size: int) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[index.cpu().long()] = True
    return mask


def _overlap(mask: Tensor, before: Tensor) -> float | None:
    return int((mask & before).sum()) / int(before.sum()) if before.any() else None


BITS = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)


def _packed(mask: Tensor) -> Tensor:
    whole = torch.zeros(-(-len(mask) // 8) * 8, dtype=torch.uint8)
    whole[: len(mask)] = mask
    return (whole.view(-1, 8) * BITS).sum(1, dtype=torch.uint8)


def _unpacked(packed: Tensor, size: int) -> Tensor:
    return (packed.unsqueeze(1) & BITS).bool().view(-1)[:size]


class SampleTrace:
    """Writes `samples.json`: of each task, pictures of some samples that DDR removed and of some that it kept.

    Only for streams of images. The pictures are evenly spaced in the order of the data, so that they speak for all.
    """

    def __init__(self, learner: Learner, class_names: Sequence[str], path: Path) -> None:
        self.learner, self.names, self.path = learner, class_names, path

    def __call__(self, event: str, figures: Mapping[str, Any]) -> None:
        """Observe an event of the Learner."""
        if event != "task.end":
            return
        train = self.learner.task.train
        here = torch.zeros(len(train), dtype=torch.bool)
        here[self.learner.sparsifier.keep(torch.arange(len(train)))] = True
        if bool(here.all()) or not shows(train.inputs):
            return
        split = {"removed": (~here).nonzero().squeeze(1), "kept": here.nonzero().squeeze(1)}
        told = {name: {"count": len(ids), "shown": self._shown(train, ids)} for name, ids in split.items()}
        earlier = [entry for entry in self._written() if entry["task"] < figures["task"]]
        write_atomically(self.path, json.dumps({"tasks": [*earlier, {"task": figures["task"], **told}]}) + "\n")

    def _shown(self, train: Samples, ids: Tensor) -> list[dict[str, Any]]:
        """Number in the task, class name and picture of at most `SHOWN` samples."""
        count = min(SHOWN, len(ids))
        picked = [int(ids[i * len(ids) // count]) for i in range(count)]
        return [
            {"id": i, "label": self.names[int(train.labels[i])], "image": data_address(train.inputs[i])} for i in picked
        ]

    def _written(self) -> list[dict[str, Any]]:
        """What the file holds of this run's earlier tasks; a damaged file is begun anew."""
        try:
            tasks = json.loads(regular.read(self.path, MAX_RESULT, ours=True).decode("utf-8"))["tasks"]
            return [entry for entry in tasks if type(entry["task"]) is int]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return []
