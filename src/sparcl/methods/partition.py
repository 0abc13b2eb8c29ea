"""Shared by PackNet and LPS: every weight belongs to the task that learned it, and never moves again.

Legend: t task, from 0; owner of an entry: 0 while free, t + 1 once it belongs to task t.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparcl.checkpoint import checks
from sparcl.errors import ConfigError
from sparcl.methods.method import Batch, Host, Method, only
from sparcl.methods.respond import classifier
from sparcl.nn.convert import dense_buffers, dense_parameters
from sparcl.nn.layers import is_weighted, weight_of
from sparcl.sparsity.importance import lowest
from sparcl.streams.task import Task

LEARN_SHARE = 2 / 3
"""Share of a task's training before it is packed; the rest trains what it keeps (the papers add epochs for that)."""


class PartitionMethod(Method):
    """A network split into parts, one for each task; which part answers is the user's to say (Task-IL).

    The weights of all convolutions and linear layers but the classifier are divided; the classifier's rows belong to
    their classes' tasks; everything else (biases, BatchNorm's scales) to the first task. Buffers, BatchNorm's running
    statistics, are each task's own (ours: the papers go on from a trained network with the first task's; a ResNet-18
    trained from scratch ended in NaN a few steps into the second task).

    A weight that is frozen (`requires_grad_(False)`) when the first task begins is divided by nobody and serves all
    tasks as it is; one that is frozen later keeps its parts and changes no more.

    Args:
        pruned: share of the free weights of each layer that a task leaves to those after it.
    """

    scenarios: ClassVar[tuple[str, ...]] = ("task-il",)
    masks = "none"
    by_parameter = True
    uses_classifier = True
    answers_need = "the number of the task: the weights that answer for it, and its own BatchNorm statistics"

    def __init__(self, *, pruned: float = 0.75) -> None:
        super().__init__(single_head=True)
        if not 0.0 < pruned < 1.0:
            raise ConfigError(f"pruned share {pruned} is not allowed for {self.name}; use a share between 0 and 1")
        self.pruned = pruned
        self.present = 0  # t + 1 of the task that is or was last trained
        self.packed = True

    def attach(self, host: Host) -> None:
        super().attach(host)
        model, head = host.model, classifier(host.model)
        of_head = {id(p) for p in head.parameters()}
        weights = {id(weight_of(m)[0]) for m in model.modules() if is_weighted(m) and m is not head}
        self.names = [name for name, _ in model.named_parameters()]
        self.dense = dense_parameters(model)
        self.parameters = list(model.parameters())
        self.divisible = [i for i, p in enumerate(self.parameters) if id(p) in weights]
        self._divide()
        self.head = [i for i, p in enumerate(self.parameters) if id(p) in of_head]
        self.owner = [torch.zeros_like(p, dtype=torch.int16) for p in self.parameters]
        self.statistics: dict[str, dict[str, Tensor]] = {}  # by task: the buffers that it ended with, by name
        self._before: list[Tensor] = []

    def _divide(self) -> None:
        """Divide what is trained; a frozen weight stays whole."""
        self.divided = [i for i in self.divisible if self.parameters[i].requires_grad]

    @abstractmethod
    def used(self, i: int, t: int) -> Tensor:
        """Bool, of the shape of divided parameter i: the weights that answer for the packed task t."""

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [N, C] of the network as the present task trains it."""

    def check_task(self, task: Task) -> None:
        for i in self.head if self.present else ():
            for k in task.classes:
                if int(owner := self._as_dense(i, self.owner[i])[k].max()):
                    raise ConfigError(
                        f"class {k} of task {task.index + 1} was learned in task {owner}, and method {self.name}"
                        " answers for a class by one task only: bring new classes"
                    )
        for i in self.divisible if self.present else ():
            if i not in self.divided and self.parameters[i].requires_grad:
                raise ConfigError(
                    f"{self.names[i]} was frozen when the first task began, so method {self.name} gives it to no task"
                    " and it would never train: leave it frozen"
                )

    def begin_task(self, task: Task) -> None:
        if not self.present:
            self._divide()
        self.present, self.packed = task.index + 1, False
        for i, owner in enumerate(self.owner):
            if i in self.head:
                self._as_dense(i, owner)[list(task.classes)] = self.present
            elif i not in self.divided:
                owner.fill_(1)

    def begin_step(self, progress: float) -> None:
        if not self.packed and progress >= LEARN_SHARE:
            self.pack()

    def end_task(self, task: Task) -> None:
        del task
        if not self.packed:
            self.pack()
        now = dense_buffers(self.host.model)
        self.statistics[str(self.present - 1)] = {name: buffer.detach().clone() for name, buffer in now.items()}

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self.forward(batch.inputs)
        return F.cross_entropy(only(logits, batch.task.classes), batch.labels), logits

    def after_backward(self, batch: Batch) -> None:
        """Clear what belongs to others, and note the weights: momentum and decay move without a gradient."""
        del batch
        self._before = [p.detach().clone() for p in self.parameters]
        for i, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                parameter.grad.masked_fill_(~self.trainable(i), 0.0)

    @torch.no_grad()
    def after_step(self, batch: Batch, logits: Tensor) -> None:
        """Put what belongs to others back, bit for bit."""
        del batch, logits
        for i, (parameter, before) in enumerate(zip(self.parameters, self._before, strict=True)):
            parameter.copy_(torch.where(self.trainable(i), parameter, before))

    def trainable(self, i: int) -> Tensor:
        """Bool, of the shape of parameter i: what the present task may move."""
        own = self.owner[i] == self.present
        return own if self.packed or i not in self.divided else own | (self.owner[i] == 0)

    @torch.no_grad()
    def pack(self) -> None:
        """Keep the largest free weights of each layer for the present task; set the others to 0, free for the next."""
        for i in self.divided:
            weight, owner = self.parameters[i], self.owner[i]
            if not weight.requires_grad:
                continue  # frozen since: what is free of it stays free
            owner[self.largest_free(i, weight)] = self.present
            weight.masked_fill_(owner == 0, 0.0)
        self.packed = True

    def largest_free(self, i: int, values: Tensor) -> Tensor:
        """Bool: the share 1 - `pruned` of parameter i's free entries with the largest |values|."""
        free = (self.owner[i] == 0).flatten().nonzero().squeeze(1)
        kept = len(free) - round(self.pruned * len(free))
        chosen = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
        chosen[free[~lowest(values.detach().flatten()[free].abs(), len(free) - kept)]] = True
        return chosen.view(values.shape)

    @torch.no_grad()
    def predict(self, inputs: Tensor, task: Task) -> Tensor:
        """Logits of the task's own part, other classes at -inf; of the network in training while it has none."""
        if task.index + 1 > self.present or (task.index + 1 == self.present and not self.packed):
            return only(self.forward(inputs), task.classes)
        return only(self.answer(self.host.model, inputs, self._part(task.index), task.index), task.classes)

    def _as_dense(self, i: int, of_parameter: Tensor) -> Tensor:
        """A tensor laid out like parameter i, viewed in the shape that the dense network has."""
        return of_parameter.view(self.dense[i][1])

    def _part(self, t: int) -> dict[str, Tensor]:
        """What answers for the packed task t: `task-t.mask.NAME` bool, of a weight; `task-t.buffer.NAME`, a buffer.

        Names and shapes are the dense network's, whatever backend trains it.
        """
        masks = {f"task-{t}.mask.{self.dense[i][0]}": self._as_dense(i, self.used(i, t)) for i in self.divided}
        return masks | {f"task-{t}.buffer.{k}": value for k, value in self.statistics.get(str(t), {}).items()}

    def answer_state(self, task: Task) -> dict[str, Tensor]:
        """The parts of all tasks that are learned: see `_part`."""
        del task
        return {name: tensor for t in self.statistics for name, tensor in self._part(int(t)).items()}

    @classmethod
    @torch.no_grad()
    def answer(cls, model: nn.Module, inputs: Tensor, state: Mapping[str, Tensor], task: int | None = None) -> Tensor:
        logits: Tensor = torch.func.functional_call(model, cls._replaced(model, state, task), (inputs,))
        return logits

    @classmethod
    @torch.no_grad()
    def as_network(cls, model: nn.Module, state: Mapping[str, Tensor], task: int | None = None) -> nn.Module:
        made = copy.deepcopy(model)
        made.load_state_dict(cls._replaced(model, state, task), strict=False)
        return made

    @classmethod
    def _replaced(cls, model: nn.Module, state: Mapping[str, Tensor], task: int | None) -> dict[str, Tensor]:
        """The weights that answer for a task, and its buffers, by the names that they have in `model`."""
        part = {k.removeprefix(f"task-{task}."): v for k, v in state.items() if k.startswith(f"task-{task}.")}
        if not part:
            learned = sorted({k.partition(".")[0] for k in state}) or ["none"]
            raise ConfigError(f"method {cls.name} answers for one of its tasks: {', '.join(learned)}")
        here = zip(dense_parameters(model), model.named_parameters(), strict=True)
        weights = {dense: (name, weight) for (dense, _), (name, weight) in here}
        replaced = {}
        for key, tensor in part.items():
            kind, _, name = key.partition(".")
            if kind == "mask":
                name, weight = weights[name]
                replaced[name] = weight.masked_fill(~tensor.view(weight.shape), 0.0)
            else:
                replaced[name] = tensor
        return replaced

    def state_dict(self) -> dict[str, Any]:
        owner = {str(i): owner for i, owner in enumerate(self.owner)}
        whole = [i for i in self.divisible if i not in self.divided]
        state = {"present": self.present, "packed": self.packed, "owner": owner, "statistics": self.statistics}
        return {**state, "whole": whole} if whole and self.present else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.present, self.packed = checks.integer(state["present"], "the task's number"), bool(state["packed"])
        whole = [checks.integer(i, "a weight left whole") for i in state.get("whole", ())]
        if self.present:
            self.divided = [i for i in self.divisible if i not in whole]
        self.owner = [
            checks.tensor(state["owner"][str(i)], "a weight's task", torch.int16, tuple(p.shape)).to(p.device)
            for i, p in enumerate(self.parameters)
        ]
        tasks, statistics = [str(t) for t in range(self.present)], state["statistics"]
        ended = tasks if tasks and tasks[-1] in statistics else tasks[:-1]
        checks.keys(statistics, ended, "the statistics of the tasks")
        self.statistics = {t: self._statistics(statistics[t]) for t in ended}

    def _statistics(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        buffers, what = dense_buffers(self.host.model), "a task's statistics"
        checks.keys(kept, list(buffers), what)
        return {k: checks.tensor(kept[k], what, b.dtype, tuple(b.shape)).to(b.device) for k, b in buffers.items()}
