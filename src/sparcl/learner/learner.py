"""The Learner: a model × a method × a sparsifier, learning one task after another.

    learner = Learner(model, method=DERpp(buffer_size=200), sparsifier=SparCL(sparsity=0.90))
    for task in streams.seq_cifar10("data"):
        learner.learn(task)
        print(learner.evaluate())

Legend: N batch, C classes of the whole stream.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from sparcl import seeds
from sparcl.checkpoint import Checkpointer, Interval, Store
from sparcl.checkpoint.store import open_folder
from sparcl.errors import CheckpointError, ConfigError
from sparcl.learner import apart, refusals, saving
from sparcl.learner.accuracy import Accuracy, measure
from sparcl.learner.asked import Asked
from sparcl.learner.backend import give_to_backend
from sparcl.learner.budget import Budget, check_pace
from sparcl.learner.chance import ChanceWatch
from sparcl.learner.classes import Classes, GrowingLinear
from sparcl.learner.loss_watch import LossWatch
from sparcl.learner.position import Position
from sparcl.learner.prediction import Prediction, predict
from sparcl.learner.trained import Trained
from sparcl.methods.finetune import Finetune
from sparcl.methods.method import Batch, Host, Method
from sparcl.methods.respond import evaluating
from sparcl.nn import memory
from sparcl.nn.dense import dense_model
from sparcl.sparsity.sparsifier import Sparsifier
from sparcl.streams.augment import Transform
from sparcl.streams.batches import steps as steps_of_epoch
from sparcl.streams.checked import checked, checked_test
from sparcl.streams.split import ArrayLike
from sparcl.streams.task import Name, Task

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
        epochs, steps, seconds: the budget of each task, one of them: passes over it, steps, or seconds of training
            (mask updates counted, evaluation and checkpoints not); default: one epoch.
        pace: what a budget of seconds came to before (`Learner.pace`): the same steps, and so the same bits.
        batch_size: samples of the task a step.
        drop_last: whether an epoch leaves out its last batch where that has fewer samples; default, as each source has
            it: no without a sparsifier (Mammoth's hosts), yes under one (the released SparCL code, rivals included). A
            last batch of one sample is left out always: it has no batch statistics.
        replay_batch_size: samples drawn from the buffer at a time; default: `batch_size`.
        seed: of every random draw that the Learner makes (the model's initial weights are the caller's).
        device: where to train.
        backend: `reference` (dense × mask, any device), `native` (compact, CPU) or `auto`: native where the model is
            pruned on a CPU that has the compiled part, less the layers that are faster dense.
        layer_choice: what `auto` measured before (`Learner.layer_choice`): "native" or "dense" by layer name.
        classes: names of the model's columns, in order: the head then grows with every class that `make_task` brings;
            () for a head that starts without columns. None: the number of columns is fixed.
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
        epochs: int | None = None,
        steps: int | None = None,
        seconds: float | None = None,
        pace: Sequence[Sequence[int]] = (),
        batch_size: int = 32,
        replay_batch_size: int | None = None,
        drop_last: bool | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        backend: str = "auto",
        layer_choice: Mapping[str, str] | None = None,
        input_shape: tuple[int, ...] | None = None,
        classes: Sequence[Name] | None = None,
        observers: Sequence[Observer] = (),
        checkpoint_dir: str | Path | None = None,
        checkpoint_every: int | str = "60s",
    ) -> None:
        refusals.check_settings(batch_size, replay_batch_size, lr)
        refusals.check_model(model)
        self.method, self.sparsifier = method or Finetune(), sparsifier or Sparsifier()
        self.method.check(self.sparsifier.name, prunes=self.sparsifier.prunes, moves=self.sparsifier.moves)
        self.recipes = saving.recipes(model, self.method, self.sparsifier)
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()  # training mode is for `learn` alone
        memory.own_memory(self.model)
        self.budget, self.batch_size, self.seed = Budget.of(epochs, steps, seconds), batch_size, seed
        check_pace(pace)
        self.pace = [list(steps) for steps in pace]
        self.classes = Classes(self.model, self.method, classes)
        self.transform: Transform | None = None
        self.backend, self.layer_choice = give_to_backend(
            self.model,
            self.sparsifier,
            self.device,
            backend,
            batch_size=batch_size,
            layer_choice=layer_choice or {},
            input_shape=input_shape,
        )
        self.settings: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
        self.settings["budget"] = {self.budget.kind: self.budget.amount}
        self.settings["replay_batch_size"] = replay_batch_size or batch_size
        self.drop_last = self.settings["drop_last"] = self.sparsifier.drops_last if drop_last is None else drop_last
        self.observers = list(observers)
        self._checkpointer: Checkpointer | None = None
        if checkpoint_dir is not None:
            store, every = Store(Path(checkpoint_dir)), Interval.parse(checkpoint_every)
            self._checkpointer = Checkpointer(every, lambda: self._save_to(store))
        make = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay))
        self.optimizer = make(list(self.model.parameters()))
        refusals.check_optimizer(self.optimizer)
        self.trained = Trained(self.model, self.optimizer)
        self.sparsifier.attach(self.model, self.optimizer, seed)
        self.classes.check_dense(self.sparsifier.layers)
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
                read_replay=self._read_replay,
            )
        )
        self.tasks: list[Task] = []
        self.position: Position | None = None
        self.learned = self.steps = 0
        self._midway = self._learning = False
        self.watch_loss, self.watch_chance = LossWatch(), ChanceWatch()
        self._mark = 0.0  # until when time is counted
        self._parts: apart.Parts | None = None  # of a step whose gradients are ranked by

    def __repr__(self) -> str:
        kind, weights = type(self.model).__name__, sum(p.numel() for p in self.model.parameters())
        made = f"{kind} of {weights:,} weights, method {self.method.name}, sparsifier {self.sparsifier.name}"
        where = f", inside task {self.position.task + 1}" if self.position is not None else ""
        done = f"{self.learned} task(s) learned{where}, {self.steps:,} steps"
        return f"<Learner: {made},\n  backend {self.backend} on {self.device};\n  {done}>"

    def tell(self, event: str, figures: dict[str, Any]) -> None:
        """Pass an event on to the observers."""
        for observer in self.observers:
            with self._not_counted(isinstance(observer, Checkpointer)):
                observer(event, figures)
        if self._checkpointer is not None:
            with self._not_counted(True):
                self._checkpointer(event, figures)  # last: what the others count is in the state

    @contextlib.contextmanager
    def _not_counted(self, applies: bool) -> Iterator[None]:
        """What is done in here, if it applies, takes nothing from a budget of seconds: checkpoints and evaluation."""
        started = time.perf_counter() if applies and self.position is not None else None
        try:
            yield
        finally:
            if started is not None:
                self._mark += time.perf_counter() - started

    # --- learning -----------------------------------------------------------------------------------------------

    def learn(self, task: Task) -> None:
        """Learn one task; where a loaded state stands inside it, go on from there.

        The model is in training mode meanwhile, and in evaluation mode before and after. A task of your own is cast and
        checked as `streams.from_arrays` does it. PyTorch's global generators are the Learner's own until this returns,
        for its observers too; the caller's are then as they were.

        Raises:
            TrainingError: the loss became NaN or infinite (names task, epoch and step).
            DataError: the task cannot be trained on.
            ConfigError: it is not the next, or the model and its optimizer no longer fit each other or the task.
            CheckpointError: a loaded state stands inside a task with other data; or a checkpoint cannot be written.
        """
        refusals.check_trained(self.optimizer)
        if (misfit := self._misfit()) is not None:
            raise ConfigError(misfit)
        task, new = self.classes.bind(task, self.learned)
        task = checked(task)
        refusals.check_turn(task, self.learned)
        self.classes.extend(new, self.optimizer, self.generators.head)
        self._learning = True
        try:
            with self.generators.lent():
                self._learn(task)
        finally:
            self._learning = False
            self.model.eval()
        self.tell("task.end", {"task": task.index})

    def _misfit(self) -> str | None:
        """What of the model has changed so that it would not train as it seems, in one line."""
        by_parameter = self.method.name if self.method.by_parameter else ""
        return self.trained.misfit(self.model, self.optimizer, self.sparsifier.layers, by_parameter=by_parameter)

    def _learn(self, task: Task) -> None:
        """Learn a task that is well formed and the next one."""
        self._enter(task)
        position = self.position
        assert position is not None
        while not self.budget.over(position):
            self._begin_epoch(position)
            while position.upcoming(self.drop_last) and not self.budget.over(position):
                self._step(position)
            self.watch_loss.settle(position)
            self.watch_chance.end_epoch(position)
            position.epoch, position.step, position.cursor, position.order = position.epoch + 1, 0, 0, None
            self.tell("epoch.end", {"task": position.task, "epoch": position.epoch - 1})
        with self._under_way():
            self.sparsifier.end_task()
            self.method.end_task(self.task)
        if self.budget.kind == "seconds" and not position.replayed:
            self.pace.append(position.pace)
        if not position.learned:
            figures = {"task": task.index, "accuracy": position.accuracy, "chance": self.watch_chance.most}
            self.tell("learner.chance", figures)
        self.position = None
        self.learned += 1

    def _enter(self, task: Task) -> None:
        """Bind to the task; begin it unless a loaded state stands inside it."""
        self._mark = time.perf_counter()
        if self.method.buffer is not None:
            self.method.buffer.check_inputs(task.train.inputs)
        if self.position is None:
            fits = (self.model, self.method, task, self.device, self.batch_size)
            refusals.check_fit(*fits, grows=self.classes.grows)
            self.method.check_task(task)
        else:
            saving.check_task(self.position, task, self.sparsifier)
        self.task, self.transform = task, task.transform
        self.classes.note(task)
        self.watch_chance.begin_task(task)
        self.tasks = [*(known for known in self.tasks if known.index < task.index), task]
        self.inputs, self.labels = task.train.inputs.to(self.device), task.train.labels.to(self.device)
        asked = (self._assemble, self.generators.importance, len(task.train), self.batch_size, self.tell)
        losses = Asked(self.method, self.sparsifier, *asked).losses()
        if self.position is not None:
            self.sparsifier.resume_task(losses)
            self.method.resume_task(task)
            return
        self.tell("task.begin", {"task": task.index, "classes": list(task.classes), "samples": len(task.train)})
        self.model.train()
        seeds.seed_torch(seeds.derive(self.seed, f"torch/{task.index}"), self.device)  # what a model draws: dropout
        with self._under_way():
            self.method.begin_task(task)
            epochs = int(self.budget.amount) if self.budget.kind == "epochs" else 1
            self.sparsifier.begin_task(task.index, samples=len(task.train), epochs=epochs, losses=losses)
        pace = self.pace[task.index :][:1]
        position = Position(task.index, pace=[*pace[0]] if pace else [], replayed=bool(pace))
        self.position = position  # not before: a state saved until now begins the task anew

    def _begin_epoch(self, position: Position) -> None:
        """Draw the epoch's order, less what DDR has removed; a resumed epoch has it already."""
        self.model.train()
        if position.order is not None:
            return
        drawn = torch.randperm(len(self.task.train), generator=self.generators.order)
        position.plan(self.sparsifier.keep(drawn), self.batch_size, self.drop_last)
        self.sparsifier.begin_epoch(position.epoch, position.planned_steps)
        # what a dense host would make of the epoch; under the other budgets it makes as many steps as this one
        dense_steps, _, dense_last = steps_of_epoch(len(self.task.train), self.batch_size, self.drop_last)
        figures = {"task": position.task, "epoch": position.epoch, "steps": position.planned_steps}
        dense = {"dense_steps": dense_steps if self.budget.kind == "epochs" else 0, "dense_last": dense_last}
        self.tell("epoch.begin", {**figures, **dense})

    def _step(self, position: Position) -> None:
        """One step, unless a removal at this very step has left too few samples of this epoch."""
        with self._under_way():
            if (done := self._train(position)) is None:
                return
            loss, samples = done
            now = time.perf_counter()
            self.budget.note(position, now - self._mark)
            self._mark = now
            position.cursor += samples
            position.step += 1
            self.steps += 1
        figures = {"task": position.task, "epoch": position.epoch, "step": position.step}
        figures |= {"steps": position.planned_steps, "samples": samples}
        self.tell("step.end", {**figures, "loss": loss.detach(), "spent": self.budget.spent(position)})

    def _train(self, position: Position) -> tuple[Tensor, int] | None:
        """Masks move, forward, backward, optimizer, memory: the loss and its samples; None where no batch is left."""
        self._begin_step(position)
        self.method.begin_step(self.budget.spent(position))
        assert position.order is not None
        if not (samples := position.upcoming(self.drop_last)):
            return None
        ids = position.order[position.cursor : position.cursor + samples]
        batch = self._assemble(ids)
        self.tell("step.begin", {"samples": len(ids)})
        wanted = self.sparsifier.wants_gradients()
        parts = self._parts = apart.Parts(self.sparsifier.layers, self.tell) if wanted else None
        with apart.cut(self.model, parts):
            loss, logits = self.method.loss(batch)
            self.watch_loss(loss, position)
            self.watch_chance(logits, batch.labels)
            self.sparsifier.after_forward(ids, logits, batch.labels)
            self.optimizer.zero_grad(set_to_none=True)
            if parts is None:
                loss.backward()  # type: ignore[no-untyped-call]
            else:
                parts.backward(loss, len(ids), lambda logits: self.method.single_head_loss(logits, batch))
            self.method.after_backward(batch)
        if parts is not None:
            parts.finish(self.sparsifier)
        self.sparsifier.after_backward()  # it has the last word on what moves
        self.optimizer.step()
        self.sparsifier.after_step()
        self.method.after_step(batch, logits)
        return loss, samples

    def _begin_step(self, position: Position) -> None:
        removed = self.sparsifier.removed
        self.sparsifier.begin_step(position.step, self.budget.schedule(position))
        if self.sparsifier.removed != removed:
            position.shorten(self.sparsifier.keep, self.batch_size, self.drop_last)

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

    def _read_replay(self, backward: Callable[[], None]) -> None:
        """Send a method's L(M) back, and read it where the step's gradients are ranked by."""
        if self._parts is None:
            backward()
        else:
            self._parts.read_after(backward)

    # --- evaluation ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, tasks: Sequence[Task] | None = None) -> Accuracy:
        """Accuracy on the test samples of `tasks` (default: those learned so far), in percent.

        The model stays in evaluation mode, unless an observer asks in the middle of a task. A model that draws while it
        is evaluated draws the same each time, and nobody else's generator moves.

        Raises:
            ConfigError: there is no task to evaluate on, or it has classes that the model has no logits for.
            DataError: a task has no test samples, or they are not allowed.
        """
        begun = self.learned + (self.position is not None)
        known = [task for task in self.tasks if task.index < begun]  # the last one given may have been refused
        if tasks is None and len(known) < begun:
            raise ConfigError("name the tasks to evaluate on: those before the loaded state were never given")
        tasks = [checked_test(task) for task in (known if tasks is None else tasks)]
        if not tasks:
            raise ConfigError("nothing to evaluate: learn a task first, or name the tasks")
        self.tell("evaluate.begin", {})
        self.model.eval()
        try:
            with self._not_counted(True), self.generators.aside(seeds.derive(self.seed, "evaluate")):
                return measure(tasks, self.method, self.device, partial(self.tell, "evaluate.batch", {}))
        finally:
            self.model.train(self._learning)
            self.tell("evaluate.end", {})

    def predict(self, inputs: ArrayLike, task: int | None = None) -> Prediction:
        """Answers to inputs as stored, [N, ...]; the transform of the tests goes first.

        Args:
            task: index of the task that they are of; needed by a method that answers with its knowledge (Task-IL).

        Raises:
            ConfigError: nothing is learned yet, or the task is not named where it must be, or not known.
            DataError: the inputs are not those that the network takes.
        """
        if self.transform is None:
            raise ConfigError("nothing to predict with: learn a task first")
        if task is None and "class-il" not in self.method.scenarios:
            raise ConfigError(
                f"method {self.method.name} answers for one task: predict(x, task=0 to {self.learned - 1})"
            )
        if task is not None and not 0 <= task < len(self.classes.of_tasks):
            raise ConfigError(f"task {task} is not known; allowed are 0 to {len(self.classes.of_tasks) - 1}")
        columns = None if task is None else self.classes.of_tasks[task]
        index = max(self.learned - 1, 0) if task is None else task
        with evaluating(self.model):
            return predict(self.method.predict, inputs, self.transform, self.classes.names, columns, index, self.device)

    def dense_model(self) -> nn.Module:
        """A copy of the model as plain dense PyTorch, evaluating: `torch.onnx.export` and others take it.

        No compact layers, zeros where weights are not active; its state dict loads into the model as it was made.

        Raises:
            ConfigError: the model cannot be copied.
        """
        made = dense_model(self.model)
        for module in made.modules():
            if type(module) is GrowingLinear:
                cast(Any, module).__class__ = nn.Linear
        return made

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
            CheckpointError: asked for in the middle of a step, or while a task begins or ends; or the model and its
                optimizer no longer fit each other.
        """
        if self._midway:
            raise CheckpointError(f"nothing can be saved in the middle of a step; save at {', '.join(SAFE)}")
        if (misfit := self._misfit()) is not None:
            raise CheckpointError(f"this state cannot be saved: {misfit}")
        if self.position is not None:
            self.watch_loss.settle(self.position)
            self.watch_chance.settle(self.position)
            if self.position.data is None:
                self.position.data = saving.fingerprint(self.task.train.inputs, self.task.train.labels)
        return saving.capture(self)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `checkpoint_state()` of a Learner with the same model, method and settings, on any backend.

        Raises:
            CheckpointError: it is another's, or not well formed.
        """
        saving.restore(self, state)
