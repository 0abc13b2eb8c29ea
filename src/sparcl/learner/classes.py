"""Which class each column of the logits stands for, and a classifier that grows with every class that arrives.

Legend: C columns of the logits so far, D inputs of the classifier.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from sparcl.errors import CheckpointError, ConfigError, DataError
from sparcl.learner.undo import set_data
from sparcl.methods import METHODS, Method
from sparcl.methods.respond import classifier
from sparcl.nn.layers import AVERAGE, elementwise_state, fresh_state, prunable_names
from sparcl.sparsity.sparsifier import Sparsifier
from sparcl.streams.checked import by_name
from sparcl.streams.labels import check_written_once
from sparcl.streams.task import Name, Samples, Task

MOST_CLASSES = 1 << 20


COLUMNS_AT_ONCE = 64


class GrowingLinear(nn.Linear):
    """A linear layer each of whose outputs is a sum of its own: more of them change no bit of the others.

    A matrix product of another width is summed in another order. [N, D] in, [N, C] out.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.split(self.weight, COLUMNS_AT_ONCE)
        y = torch.cat([(x.unsqueeze(-2) * few).sum(-1) for few in rows], dim=-1)
        return y if self.bias is None else y + self.bias


class Classes:
    """The names of a Learner's columns, and the columns of each task so far.

    Args:
        names: of the model's columns, in order. Given, the head grows with every new one, () being a head that starts
            without columns; None: the number of columns is fixed, and nothing is known of their names.

    Raises:
        ConfigError: the method cannot follow a growing head, the last layer is no `nn.Linear`, or it has another
            number of columns than there are names.
    """

    def __init__(self, model: nn.Module, method: Method, names: Sequence[Name] | None) -> None:
        names = names.tolist() if isinstance(names, np.ndarray) else names
        if isinstance(names, str) or not isinstance(names, Sequence | None):
            raise ConfigError(f"classes {names!r:.40} are not allowed; use a list of names, () for a growing head")
        self.grows = names is not None
        self.names: list[Name] = list(names or ())
        self._given = list(self.names)  # by the caller; what came later may go again, with an older state
        self.of_tasks: list[tuple[int, ...]] = []
        self.model, self.method = model, method
        if names is None:
            return
        if not method.grows:
            allowed = ", ".join(name for name, kind in METHODS.items() if kind.grows)
            raise ConfigError(f"method {method.name} needs all classes beforehand; these follow new ones: {allowed}")
        check_names(self.names, ConfigError)
        check_written_once(self.names, ConfigError)
        head = self._head()
        self._check_trained()
        if self.names and head.out_features != len(self.names):
            raise ConfigError(f"{len(self.names)} classes are named, but the model has {head.out_features} logits")
        _set_rows(head.weight, head.weight.detach()[: len(self.names)])
        if head.bias is not None:
            _set_rows(head.bias, head.bias.detach()[: len(self.names)])
        head.out_features, head.__class__ = len(self.names), GrowingLinear

    def check_dense(self, sparsifier: Sparsifier) -> None:
        """Raise ConfigError if the growing classifier would be pruned: its mask would be that of another shape."""
        if not self.grows or not sparsifier.prunes:
            return
        if any(self.model.get_submodule(n) is self._head() for n in prunable_names(self.model, sparsifier.prunable)):
            raise ConfigError("a classifier that grows cannot be pruned: leave it out of `prunable`")

    def bind(self, task: Task, index: int) -> tuple[Task, list[Name]]:
        """The task in this Learner's columns, and the names that are new: `extend` gives them theirs.

        Args:
            index: of a task that has none of its own, as `make_task` makes it; one of a stream keeps its own.

        Raises:
            ConfigError: the head does not grow, and the names are not those of its columns; or it grows and is frozen.
            DataError: a task of columns without names, for a head that grows by names; a new name is written as one
                that is known, the one a number and the other a string.
        """
        if not getattr(task, "names", ()):
            if not self.grows:
                return task, []
            if not getattr(task, "column_names", ()):
                raise DataError(
                    "the Learner's head grows with names of classes: make the task with streams.make_task(x, y), or"
                    " take it from a stream, which names its classes"
                )
            task = by_name(task)
            index = task.index
        if self.grows:
            self._check_trained()
        new = [name for name in task.names if name not in self.names]
        if new and not self.grows:
            known = f"known are: {', '.join(map(str, self.names))}" if self.names else "its columns have no names"
            raise ConfigError(
                f"class {new[0]!r} is new, but the number of logits is fixed ({known}): use Learner(..., classes=())"
            )
        names = [*self.names, *new]
        if new:
            check_written_once(names, DataError)
        if len(names) > MOST_CLASSES:
            raise DataError(f"{len(names)} classes are too many; at most {MOST_CLASSES} are allowed")
        column = torch.tensor([names.index(name) for name in task.names])
        train, test = (None if s is None else Samples(s.inputs, column[s.labels]) for s in (task.train, task.test))
        assert train is not None
        bound = replace(task, index=index, classes=tuple(column.tolist()), train=train, test=test)
        return replace(bound, names=(), column_names=()), new

    def known(self, task: Task, index: int) -> Task:
        """A task to evaluate on, in this Learner's columns: one of names gets them, and the index of the task that
        brought them, whose knowledge a Task-IL method answers with; where none brought them all, the given one.

        Raises:
            ConfigError: one of its names has no column; or the method answers for one task, and they are of several.
        """
        named = getattr(task, "names", ()) or (self.grows and getattr(task, "column_names", ()))
        bound, new = self.bind(task, index) if named else (task, [])
        if new:
            raise ConfigError(f"class {new[0]!r} has no column: it was never learned; known are: {self.names!r:.80}")
        return replace(bound, index=self._learned_as(bound, index)) if getattr(task, "names", ()) else bound

    def _learned_as(self, task: Task, index: int) -> int:
        """Index of the task that brought all columns of `task`; `index` where none did."""
        found = next((t for t, columns in enumerate(self.of_tasks) if {*task.classes} <= {*columns}), None)
        if found is None and "class-il" not in self.method.scenarios:
            names = ", ".join(str(self.names[k]) for k in task.classes[:5])
            raise ConfigError(
                f"method {self.method.name} answers for one task, and {names} were not learned in one: evaluate on the"
                " classes of each task by themselves"
            )
        return index if found is None else found

    @contextlib.contextmanager
    def extended(
        self, new: Sequence[Name], optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> Iterator[None]:
        """New classes get their columns, and lose them again where what is done in here is refused."""
        names, of_tasks, drawn = self.names, self.of_tasks, generator.get_state()
        self.names = [*names, *new]
        try:
            self._grow(optimizer, generator)
            yield
        except BaseException:
            self.names, self.of_tasks = names, of_tasks
            if new:
                self._shrink(optimizer)
            generator.set_state(drawn)
            raise

    def note(self, task: Task) -> None:
        """A task begins: these are its columns; where its stream names them, they are known by name from now on."""
        if not self.grows and not self.names and task.column_names != tuple(range(len(task.column_names))):
            self.names = list(task.column_names)
        self.of_tasks = [*self.of_tasks[: task.index], tuple(task.classes)]

    @torch.no_grad()
    def _grow(self, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """New rows as `nn.Linear` draws its own; old rows and their optimizer state keep their bits."""
        if not self.grows or (new := len(self.names) - (head := self._head()).out_features) <= 0:
            return
        bound = 1 / math.sqrt(max(head.in_features, 1))
        for parameter in head.parameters(recurse=False):  # weight, then bias
            drawn = torch.empty(new, *parameter.shape[1:]).uniform_(-bound, bound, generator=generator)
            states = elementwise_state(optimizer, parameter)
            for key, state in states.items():
                fresh = drawn if key == AVERAGE else torch.full_like(drawn, fresh_state(optimizer, parameter, key))
                optimizer.state[parameter][key] = torch.cat([state, fresh.to(state)])
            _set_rows(parameter, torch.cat([parameter.detach(), drawn.to(parameter)]))
        head.out_features = len(self.names)

    @torch.no_grad()
    def _shrink(self, optimizer: torch.optim.Optimizer) -> None:
        """As many rows as there are names; those that are left keep their bits."""
        head, rows = self._head(), len(self.names)
        for parameter in head.parameters(recurse=False):
            for key, state in elementwise_state(optimizer, parameter).items():
                optimizer.state[parameter][key] = state[:rows].clone()
            _set_rows(parameter, parameter.detach()[:rows])
        head.out_features = rows

    def _check_trained(self) -> None:
        if not all(p.requires_grad for p in self._head().parameters()):
            raise ConfigError(
                "the classifier is frozen, and new classes would never be learned: leave it out of freeze"
            )

    def _head(self) -> nn.Linear:
        head = classifier(self.model)
        if not isinstance(head, nn.Linear) or type(head) not in (nn.Linear, GrowingLinear):
            raise ConfigError(
                f"a head that grows must be an nn.Linear, defined last in the model; it is a {type(head).__name__}"
            )
        return head

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"grows": self.grows, "names": self.names, "of_tasks": [list(columns) for columns in self.of_tasks]}

    def restore(self, state: Any, optimizer: torch.optim.Optimizer) -> None:
        """Go on from `state_dict()`: the head has as many rows as there are names; what is in them follows.

        Raises:
            CheckpointError: it is not well formed, or of a Learner whose head grows where this one's does not.
        """
        check_state(state)
        if state["grows"] != self.grows:
            raise CheckpointError(
                "the checkpoint is of a Learner " + ("with" if state["grows"] else "without") + " classes="
            )
        if self.grows and state["names"][: len(self._given)] != self._given:
            raise CheckpointError("the checkpoint is of other classes")
        self.names = list(state["names"])
        self.of_tasks = [tuple(columns) for columns in state["of_tasks"]]
        if self.grows and self._head().out_features > len(self.names):  # a state of before the last classes came
            self._shrink(optimizer)
        self._grow(optimizer, torch.Generator())


def classes_in(learner: Any) -> Mapping[str, Any]:
    """What a checkpoint's part `learner` says of its columns.

    Raises:
        CheckpointError: nothing, or what `Classes.state_dict` could not have given.
    """
    state = learner.get("classes") if isinstance(learner, Mapping) else None
    check_state(state)
    return cast(Mapping[str, Any], state)


def check_state(state: Any) -> None:
    """Raise CheckpointError unless `Classes.state_dict` could have given it."""
    keys = ("grows", "names", "of_tasks")
    if not isinstance(state, dict) or set(state) != set(keys) or not isinstance(state["grows"], bool):
        raise CheckpointError("the classes in the checkpoint are not well formed")
    if not isinstance(state["names"], list) or not isinstance(state["of_tasks"], list):
        raise CheckpointError("the classes in the checkpoint are not well formed")
    check_names(state["names"], CheckpointError)
    for columns in state["of_tasks"]:
        if not isinstance(columns, list) or not all(type(k) is int and 0 <= k < MOST_CLASSES for k in columns):
            raise CheckpointError("the tasks' classes in the checkpoint are not lists of columns")


def check_names(names: Sequence[Any], error: type[ConfigError] | type[CheckpointError]) -> None:
    """Raise `error` unless they are names of classes, each there once."""
    for name in names:
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise error(f"class name {name!r:.40} is not allowed; use a string or a whole number")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise error(f"class {twice!r} is named twice")
    if len(names) > MOST_CLASSES:
        raise error(f"{len(names)} classes are too many; at most {MOST_CLASSES} are allowed")


def _set_rows(parameter: Tensor, rows: Tensor) -> None:
    """Give a Parameter another number of rows; it stays the object that the optimizer holds."""
    set_data(parameter, rows.clone())
