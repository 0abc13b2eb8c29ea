"""The Learner: a model × a method × a sparsifier, learning one task after another.

    learner = Learner(model, method=DERpp(buffer_size=200), sparsifier=SparCL(sparsity=0.90))
    for task in streams.seq_cifar10("data"):
        learner.learn(task)
        print(learner.evaluate())

Legend: N batch, C classes of the whole stream.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from sparcl import seeds
from sparcl.checkpoint import Checkpointer, Interval, Store
from sparcl.checkpoint.store import open_folder
from sparcl.errors import CheckpointError, ConfigError
from sparcl.learner import refusals, saving
from sparcl.learner.accuracy import Accuracy, accuracy_on
from sparcl.learner.loss_watch import LossWatch
from sparcl.learner.position import Position
from sparcl.methods.finetune import Finetune
from sparcl.methods.method import Batch, Host, Method
from sparcl.nn import auto, convert
from sparcl.sparsity.importance import Losses
from sparcl.sparsity.sparsifier import Sparsifier
from sparcl.streams.task import Task

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
Observer = Callable[[str, dict[str, Any]], None]
"""Told of all that happens: an event's name and its figures. Observers look on and change nothing."""

SAFE = ("task.begin", "epoch.begin", "step.end", "epoch.end", "task.end")
"""Events between two steps: where an observer may save."""


class Learner:
    """Learns tasks one after another.

    Args:
        model: any `nn.Module` that maps inputs [N, ...] to logits [N, C].
        method: how it is learned and remembered, new for each Learner; default: fine-tuning.
        sparsifier: what is computed at all; default: everything.
        optimizer: makes the optimizer from a list of the parameters; default: plain SGD (published). Native weights
            have one dimension: tell parameter groups apart by `id`, asked before (docs/performance.md).
        lr, weight_decay: of the default optimizer.
        epochs: passes over each task.
        batch_size: samples of the task a step; the last partial batch of an epoch is left out (published).
        replay_batch_size: samples drawn from the buffer at a time; default: `batch_size`.
        seed: of every random draw that the Learner makes (the model's initial weights are the caller's).
        device: where to train.
        backend: `reference` (dense × mask, any device), `native` (compact, CPU) or `auto`: native where the model is
            pruned on a CPU that has the compiled part, less the layers that are faster dense.
        layer_choice: what `auto` measured before (`Learner.layer_choice`): "native" or "dense" by layer name.
        input_shape: of one sample, so that `auto` measures layers as they will be used.
        observers: told of every event.
        checkpoint_dir: where to save while learning; None: only when `save` is called.
        checkpoint_every: how often then: steps (`500`) or seconds (`"60s"`).

    Raises:
        ConfigError: a value outside its range or a combination that cannot work, before any work is done.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method | None = None,
        sparsifier: Sparsifier | None = None,
        *,
        optimizer: MakeOptimizer | None = None,
        lr: float = 0.03,
        weight_decay: float = 0.0,
        epochs: int = 1,
        batch_size: int = 32,
        replay_batch_size: int | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        backend: str = "auto",
        layer_choice: Mapping[str, str] | None = None,
        input_shape: tuple[int, ...] | None = None,
        observers: Sequence[Observer] = (),
        checkpoint_dir: str | Path | None = None,
        checkpoint_every: int | str = "60s",
    ) -> None:
        refusals.check_settings(epochs, batch_size, replay_batch_size, lr)
        self.method, self.sparsifier = method or Finetune(), sparsifier or Sparsifier()
        self.method.check(self.sparsifier.name, prunes=self.sparsifier.prunes, moves=self.sparsifier.moves)
        self.recipes = saving.recipes(model, self.method, self.sparsifier)
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.epochs, self.batch_size, self.seed = epochs, batch_size, seed
        self.layer_choice = dict(layer_choice or {})
        self.backend = self._convert(backend, input_shape)
        self.settings: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "seed": seed}
        self.settings["replay_batch_size"] = replay_batch_size or batch_size
        self.observers = list(observers)
        self._checkpointer: Checkpointer | None = None
        if checkpoint_dir is not None:
            store, every = Store(Path(checkpoint_dir)), Interval.parse(checkpoint_every)
            self._checkpointer = Checkpointer(every, lambda: self._save_to(store))
        make = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay))
        self.optimizer = make(list(self.model.parameters()))
        refusals.check_optimizer(self.optimizer)
        self.sparsifier.attach(self.model, self.optimizer, seed)
        self.sparsifier.notify = self.tell
        self.generators = seeds.Generators(seed, self.device)
        self.method.attach(
            Host(
                model=self.model,
                augment=self._augment,
                generator=self.generators.method,
                device=self.device,
                replay_batch_size=replay_batch_size or batch_size,
                mask_gradients=self.sparsifier.mask_gradients,
            )
        )
        self.tasks: list[Task] = []
        self.position: Position | None = None
        self.learned = self.steps = 0
        self._midway = False
        self.watch_loss = LossWatch()

    def _convert(self, backend: str, input_shape: tuple[int, ...] | None) -> str:
        """Give the model to the backend that will compute it, before the optimizer takes its parameters."""
        sparsifier, batch = self.sparsifier, self.batch_size
        chosen = auto.select_backend(backend, self.model, self.device, prunes=sparsifier.prunes)
        if chosen == "native":
            if backend == "auto" and not self.layer_choice:
                densities, block = sparsifier.densities, sparsifier.pattern.block
                self.layer_choice = auto.measure(self.model, sparsifier.prunable, densities, block, batch, input_shape)
            convert.to_native(self.model, sparsifier.prunable, self.layer_choice)
        return chosen

    def tell(self, event: str, figures: dict[str, Any]) -> None:
        """Pass an event on to the observers."""
        for observer in self.observers:
            observer(event, figures)
        if self._checkpointer is not None:
            self._checkpointer(event, figures)  # last: what the others count is in the state

    # --- learning -----------------------------------------------------------------------------------------------

    def learn(self, task: Task) -> None:
        """Learn one task; where a loaded state stands inside it, go on from there.

        Raises:
            TrainingError: the loss became NaN or infinite (names task, epoch and step).
            DataError: the task cannot be trained on.
            CheckpointError: a loaded state stands inside a task with other data; or a checkpoint cannot be written.
        """
        refusals.check_task(task, self.learned)
        self._enter(task)
        position = self.position
        assert position is not None
        while position.epoch < self.epochs:
            self._begin_epoch(position)
            while position.order is not None and position.cursor + position.batch <= len(position.order):
                self._step(position)
            self.watch_loss.settle(position)
            position.epoch, position.step, position.cursor, position.order = position.epoch + 1, 0, 0, None
            self.tell("epoch.end", {"task": position.task, "epoch": position.epoch - 1})
        with self._under_way():
            self.sparsifier.end_task()
            self.method.end_task(self.task)
        self.position = None
        self.learned += 1
        self.tell("task.end", {"task": task.index})

    def _enter(self, task: Task) -> None:
        """Bind to the task; begin it unless a loaded state stands inside it."""
        if self.method.buffer is not None:
            self.method.buffer.check_inputs(task.train.inputs)
        self.task = task
        self.tasks = [*(known for known in self.tasks if known.index < task.index), task]
        self.inputs, self.labels = task.train.inputs.to(self.device), task.train.labels.to(self.device)
        losses = Losses(self._task_importance, self._replay_importance, self._objective)
        if self.position is not None:
            saving.check_task(self.position, task, self.sparsifier)
            self.sparsifier.resume_task(losses)
            self.method.resume_task(task)
            return
        refusals.check_fit(self.model, self.method, task, self.device, self.batch_size)
        self.tell("task.begin", {"task": task.index, "classes": list(task.classes), "samples": len(task.train)})
        self.model.train()
        torch.manual_seed(seeds.derive(self.seed, f"torch/{task.index}"))  # what a model draws itself: dropout
        with self._under_way():
            self.method.begin_task(task)
            self.sparsifier.begin_task(task.index, samples=len(task.train), epochs=self.epochs, losses=losses)
        self.position = Position(task.index)  # not before: a state saved until now begins the task anew

    def _begin_epoch(self, position: Position) -> None:
        """Draw the epoch's order, less what DDR has removed; a resumed epoch has it already."""
        self.model.train()
        if position.order is not None:
            return
        drawn = torch.randperm(len(self.task.train), generator=self.generators.order)
        position.plan(self.sparsifier.keep(drawn), self.batch_size)
        self.sparsifier.begin_epoch(position.epoch, position.planned_steps)
        dense_steps = len(self.task.train) // min(self.batch_size, len(self.task.train))
        figures = {"task": position.task, "epoch": position.epoch, "steps": position.planned_steps}
        self.tell("epoch.begin", {**figures, "dense_steps": dense_steps})

    def _step(self, position: Position) -> None:
        """One step, unless a removal at this very step has left less than a batch of this epoch."""
        with self._under_way():
            if (loss := self._train(position)) is None:
                return
            position.cursor += position.batch
            position.step += 1
            self.steps += 1
        figures = {"task": position.task, "epoch": position.epoch, "step": position.step}
        done = {"steps": position.planned_steps, "samples": position.batch, "loss": loss.detach()}
        self.tell("step.end", {**figures, **done})

    def _train(self, position: Position) -> Tensor | None:
        """Masks move, forward, backward, optimizer, memory: the loss, or None where no batch is left."""
        self._begin_step(position)
        self.method.begin_step((position.epoch + position.step / position.planned_steps) / self.epochs)
        assert position.order is not None
        ids = position.order[position.cursor : position.cursor + position.batch]
        if len(ids) < position.batch:
            return None
        batch = self._assemble(ids)
        self.tell("step.begin", {"samples": len(ids)})
        loss, logits = self.method.loss(batch)
        self.watch_loss(loss, position)
        self.sparsifier.after_forward(ids, logits, batch.labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.method.after_backward(batch)
        self.sparsifier.after_backward()  # it has the last word on what moves
        self.optimizer.step()
        self.sparsifier.after_step()
        self.method.after_step(batch, logits)
        return loss

    def _begin_step(self, position: Position) -> None:
        removed = self.sparsifier.removed
        self.sparsifier.begin_step(position.step)
        if self.sparsifier.removed != removed and position.order is not None:
            done, rest = position.order[: position.cursor], position.order[position.cursor :]
            position.order = torch.cat([done, self.sparsifier.keep(rest)])
            if position.cursor == 0:  # a small task may now be less than the batch that the epoch began with
                position.plan(position.order, self.batch_size)

    def _assemble(self, ids: Tensor) -> Batch:
        """The batch of the samples `ids` (int64 [N], on the CPU)."""
        where = ids.to(self.device, non_blocking=True)
        raw, labels = self.inputs[where], self.labels[where]
        return Batch(ids, raw, self._augment(raw), labels, self.task)

    def _augment(self, raw: Tensor) -> Tensor:
        return self.task.transform.train(raw, self.generators.augment)

    @contextlib.contextmanager
    def _under_way(self) -> Iterator[None]:
        """What happens in here happens as one: a state taken meanwhile would be neither the one before nor after."""
        self._midway = True
        try:
            yield
        finally:
            self._midway = False

    # --- importance ---------------------------------------------------------------------------------------------

    def _task_importance(self) -> Tensor:
        """L~(D_t) on a fresh batch of the samples still in the task."""
        with self._importance():
            return self.method.task_importance_loss(self._fresh_batch())

    def _replay_importance(self) -> Tensor | None:
        """L(M) on a fresh batch of the buffer."""
        with self._importance():
            return self.method.replay_importance_loss()

    def _objective(self) -> Tensor:
        """What the method trains on, on a fresh batch of the task (and of the buffer)."""
        with self._importance():
            return self.method.loss(self._fresh_batch())[0]

    def _fresh_batch(self) -> Batch:
        drawn = torch.randperm(len(self.task.train), generator=self.generators.importance)
        return self._assemble(self.sparsifier.keep(drawn)[: self.batch_size])

    @contextlib.contextmanager
    def _importance(self) -> Iterator[None]:
        """The forward passes in here are asked for by the sparsifier, not by the method: counted apart."""
        self.tell("importance.begin", {})
        try:
            yield
        finally:
            self.tell("importance.end", {})

    # --- evaluation ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, tasks: Sequence[Task] | None = None) -> Accuracy:
        """Accuracy on the test samples of `tasks` (default: those learned so far), in percent."""
        if tasks is None and len(self.tasks) < self.learned:
            raise ConfigError("name the tasks to evaluate on: those before the loaded state were never given")
        tasks = self.tasks if tasks is None else tasks
        if not tasks:
            raise ConfigError("nothing to evaluate: learn a task first, or name the tasks")
        self.tell("evaluate.begin", {})
        self.model.eval()
        try:
            pairs = [accuracy_on(t, self.method, self.device, lambda: self.tell("evaluate.batch", {})) for t in tasks]
            class_il, task_il = zip(*pairs, strict=True)
        finally:
            self.model.train()
            self.tell("evaluate.end", {})
        return Accuracy(class_il if "class-il" in self.method.scenarios else None, task_il)

    # --- checkpoints --------------------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> Path:
        """Write a checkpoint into `directory`: `step-N/`, then `latest` names it; the one before it is kept.

        Safe at any moment between two steps, also from an observer of the events `SAFE`. Returns the checkpoint's
        folder.

        Raises:
            CheckpointError: it cannot be written, or a step is under way; the last one is as it was.
            TrainingError: weights are NaN or infinite; nothing is written.
        """
        return self._save_to(Store(Path(directory)))

    def _save_to(self, store: Store) -> Path:
        return store.save(self.steps, self.checkpoint_state())

    @classmethod
    def load(
        cls,
        directory: str | Path,
        model: nn.Module | None = None,
        method: Method | None = None,
        sparsifier: Sparsifier | None = None,
        *,
        optimizer: MakeOptimizer | None = None,
        device: str | torch.device = "cpu",
        backend: str = "auto",
        observers: Sequence[Observer] = (),
        checkpoint_dir: str | Path | None = None,
        checkpoint_every: int | str = "60s",
    ) -> Self:
        """A Learner that goes on from a checkpoint, to the same bits: `learn` the task it stands in, then the rest.

        What is ours is made again from the checkpoint: give only a model, method, sparsifier or optimizer of your own.

        Args:
            directory: what `save` was given, a run's `checkpoint` folder, one `step-N` of either, or a model file from
                a device (docs/device.md).
            model, method, sparsifier, optimizer, device, backend, observers, checkpoint_dir, checkpoint_every:
                see Learner.

        Raises:
            CheckpointError: missing, damaged, hostile, or of another model, method or optimizer.
        """
        state = open_folder(Path(directory))
        made, settings = saving.make(state, model, method, sparsifier)
        learner = cls(
            *made,
            optimizer=optimizer or saving.make_optimizer(state),
            **settings,
            device=device,
            backend=backend,
            observers=observers,
            checkpoint_dir=checkpoint_dir,
            checkpoint_every=checkpoint_every,
        )
        learner.restore(state)
        return learner

    def checkpoint_state(self) -> dict[str, Any]:
        """All of it: settings, weights, masks, optimizer, memory, generators, position.

        Raises:
            CheckpointError: asked for in the middle of a step, or while a task begins or ends.
        """
        if self._midway:
            raise CheckpointError(f"nothing can be saved in the middle of a step; save at {', '.join(SAFE)}")
        if self.position is not None:
            self.watch_loss.settle(self.position)
            if self.position.data is None:
                self.position.data = saving.fingerprint(self.task.train.inputs, self.task.train.labels)
        return saving.capture(self)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `checkpoint_state()` of a Learner with the same model, method and settings, on any backend.

        Raises:
            CheckpointError: it is another's, or not well formed.
        """
        saving.restore(self, state)
