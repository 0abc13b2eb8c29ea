"""The Learner: a model × a method × a sparsifier, learning one task after another.

    learner = Learner(model, method=DERpp(buffer_size=200), sparsifier=SparCL(sparsity=0.90))
    for task in streams.seq_cifar10("data"):
        learner.learn(task)
        print(learner.evaluate())

Legend: N batch, C classes of the whole stream.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import nn

from sparcl import seeds
from sparcl.checkpoint import Store
from sparcl.checkpoint.store import open_folder
from sparcl.errors import CheckpointError, ConfigError, one_line
from sparcl.folders import folder_at
from sparcl.learner import making, refusals, saving
from sparcl.learner.accuracy import AT_ONCE, Accuracy, measure
from sparcl.learner.assembly import MakeOptimizer
from sparcl.learner.average import ANSWERS_NOW
from sparcl.learner.classes import GrowingLinear
from sparcl.learner.observing import Observing
from sparcl.learner.prediction import Prediction, predict
from sparcl.learner.schedule import Factor
from sparcl.learner.telling import SAFE, Observer
from sparcl.learner.undo import left_as_it_was
from sparcl.methods.method import Method
from sparcl.methods.respond import evaluating
from sparcl.nn.dense import dense_model
from sparcl.sparsity.sparsifier import Sparsifier
from sparcl.streams.checked import checked_test
from sparcl.streams.pixels import check_kind
from sparcl.streams.split import ArrayLike
from sparcl.streams.task import Task
from sparcl.whole import is_whole

KEPT = "use learner.save(folder) and Learner.load(folder)"


class Learner(Observing):
    """Learns tasks one after another, or a stream without borders.

    Args:
        model: any `nn.Module` that maps inputs [N, ...] to logits [N, C].
        method: how it is learned and remembered, new for each Learner; default: fine-tuning.
        sparsifier: what is computed at all; default: everything.
        optimizer: makes the optimizer from a list of the parameters; default: plain SGD (published). Native weights
            have one dimension: tell parameter groups apart by `id`, asked before (docs/performance.md).
        lr, weight_decay: of the default optimizer; default: 0.03 and 0. One that is given has its own.
        lr_schedule: what the learning rate is multiplied by over each task: "constant" (default), "cosine",
            "step(0.5, 0.75, by=0.1)" (by 0.1 at those shares of the task's budget), or your own function of the share
            that is spent, 0 to less than 1; a function is given again to `load`.
        warmup: share of each task in which the rate rises linearly from a hundredth to all of the schedule's.
        clip_grad_norm: what the norm of the gradients, those of all that moves taken together, is scaled down to.
        average: share of a task's steps so far (of a stream's) that an average of the weights spans, such as 0.1; it
            answers in their place (`evaluate`, `predict`, `dense_model`) and takes no part in training
            (docs/method.md). None: the weights answer.
        epochs, steps, seconds: the budget of each task, one of them: passes over it, steps, or seconds of training
            (mask updates counted, evaluation and checkpoints not); default: one epoch.
        pace: what a budget of seconds came to before (`Learner.pace`): the same steps, and so the same bits.
        batch_size: samples of the task a step; 1 in a model without BatchNorm.
        drop_last: whether an epoch leaves out its last batch where that has fewer samples; default, as each source has
            it: no without a sparsifier (Mammoth's hosts), yes under one (the released SparCL code, rivals included). A
            last batch of one sample is left out always: it has no batch statistics.
        replay_batch_size: samples drawn from the buffer at a time; default: `batch_size`.
        micro_batch: samples that pass the network at a time, of the task's batch, of replay and of a test: less memory
            for one forward pass more a step. The loss is that of the whole batches; a BatchNorm's statistics are a
            part's.
        seed: of every random draw that the Learner makes (the model's initial weights are the caller's).
        device: where to train.
        backend: `reference` (dense × mask, any device), `native` (compact, CPU) or `auto`: native where the model is
            pruned on a CPU that has the compiled part, less the layers that are faster dense.
        layer_choice: what `auto` measured before (`Learner.layer_choice`): "native" or "dense" by layer name.
        classes: names of the model's columns, in order: the head then grows with every class that `make_task` brings;
            () for a head that starts without columns. None: the number of columns is fixed.
        freeze: parts of the model that stay as they are, to the bit, in evaluation mode, and are never pruned: names or
            shell patterns of modules, in a sequence or separated by commas (`"stem,layer1"`). What comes with
            `requires_grad=False` is frozen as well.
        latents: `float32`, `float16` or `int8`: what a frozen part at the front of the model answers is computed once
            for each sample of a task, not augmented, and kept so, in the buffer as well; training starts behind it.
        input_shape: of one sample, so that `auto` measures layers as they will be used.
        observers: told of every event.
        checkpoint_dir: where to save while learning; None: only when `save` is called.
        checkpoint_every: how often then: steps (`500`) or seconds (`"60s"`, where it is left out).

    Raises:
        ConfigError: a value outside its range or a combination that cannot work, before any work is done.
    """

    def __repr__(self) -> str:
        kind, weights = type(self.model).__name__, sum(p.numel() for p in self.model.parameters())
        still = sum(p.numel() for p in self.model.parameters() if not p.requires_grad)
        kept = "" if self.latents is None else f", latents {self.latents.kind}"
        of_them = f" ({still:,} frozen{kept})" if still else ""
        made = f"{kind} of {weights:,} weights{of_them}, method {self.method.name}, sparsifier {self.sparsifier.name}"
        where = f", inside task {self.position.task + 1}" if self.position is not None else ""
        where += f", {self.stream.samples:,} samples observed" if self.stream is not None else ""
        done = f"{self.learned} task(s) learned{where}, {self.steps:,} steps"
        return f"<Learner: {made},\n  backend {self.backend} on {self.device};\n  {done}>"

    # --- evaluation ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, tasks: Sequence[Task] | None = None) -> Accuracy:
        """Accuracy on the test samples of `tasks` (default: those learned so far), in percent.

        The model stays in evaluation mode, unless an observer asks in the middle of a task. A model that draws while it
        is evaluated draws the same each time, and nobody else's generator moves.

        Raises:
            ConfigError: there is no task to evaluate on, or it has classes that the model has no logits for.
            DataError: a task has no test samples, or they are not allowed.
            TrainingError: the model's answers are NaN.
        """
        if isinstance(tasks, Task) or not isinstance(tasks, Iterable | None):
            raise ConfigError("evaluate takes tasks in a list, as evaluate([task]), or a stream")
        begun = self.learned + (self.position is not None)
        known = [task for task in self.tasks if task.index < begun]  # the last one given may have been refused
        if tasks is None and len(known) < begun:
            raise ConfigError("name the tasks to evaluate on: those before the loaded state were never given")
        tasks = known if tasks is None else [self.classes.known(task, i) for i, task in enumerate(tasks)]
        tasks = [checked_test(task) for task in tasks]
        for task in tasks:
            assert task.test is not None
            check_kind(task.test.inputs, self.stored_as, f"the test inputs of task {task.index + 1}")
        if not tasks:
            raise ConfigError("nothing to evaluate: learn a task first, or name the tasks")
        self.tell("evaluate.begin", {})
        self.model.eval()
        try:
            aside = self.generators.aside(seeds.derive(self.seed, "evaluate"))
            with self._not_counted(True), aside, self.averaged():
                told = partial(self.tell, "evaluate.batch", {})
                return measure(tasks, self.answering, self.device, told, self._at_once)
        finally:
            if self._learning:
                self.frozen.train()
            self.tell("evaluate.end", {})

    def predict(self, inputs: ArrayLike, task: int | None = None) -> Prediction:
        """Answers to inputs as stored, [N, ...]; the transform of the tests goes first.

        An observer may ask in the middle of a task: training goes on to the same bits, also where the model draws.

        Args:
            inputs: as they were learned. Where that was uint8, other whole numbers from 0 to 255 are the same pixels,
                and floating ones from 0 to 1 are pixels / 255; others are refused.
            task: index of the task that they are of; needed by a method that answers with its knowledge (Task-IL).

        Raises:
            ConfigError: nothing is learned yet, or the task is not named where it must be, or not known.
            DataError: the inputs are not those that the network takes, or its answer to one of them is no number.
        """
        if self.transform is None:
            raise ConfigError(
                "the loaded state has a transform of your own class: put it into learner.transform"
                if self.steps
                else "nothing to predict with: learn a task first, or observe"
            )
        if task is None and "class-il" not in self.method.scenarios:
            raise ConfigError(f"method {self.method.name} answers for one task: predict(x, task={_span(self.learned)})")
        tasks = len(self.classes.of_tasks)
        if task is not None and not is_whole(task, 0, tasks - 1):
            raise ConfigError(f"task {task!r:.40} is not known; allowed: {_span(tasks)}")
        columns = None if task is None else self.classes.of_tasks[task]
        index = max(self.learned - 1, 0) if task is None else task
        # inside `learn` the global generators are those of training; outside, what the model draws is the caller's
        kept = seeds.given_back(self.device) if self._learning else contextlib.nullcontext()
        with evaluating(self.model), self.averaged(), kept:
            asked = (self.answering.predict, inputs, self.transform, self.classes.names, columns, index)
            answered = predict(*asked, self.device, self._at_once, self.stored_as)
        answered.check("sample {}".format)
        return answered

    @property
    def _at_once(self) -> int:
        """Samples that are asked at a time."""
        return AT_ONCE if self.micro is None else self.micro.size

    def answer_state(self, task: Task) -> dict[str, torch.Tensor]:
        """As `Method.answer_state`, of a task whose inputs are as they came."""
        with self.averaged():
            return self.method.answer_state(task if self.latents is None else self.latents.like(task, self.device))

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """The model's weights and running statistics are their average in here; without `average`, as they are.

        For what reads `model` itself, as `torch.save(learner.model.state_dict(), ...)`, and around many calls of
        `predict`, each of which else exchanges the weights and gives them back.
        """
        return contextlib.nullcontext() if self.average is None else self.average.applied()

    def dense_model(self) -> nn.Module:
        """A copy of the model as plain dense PyTorch, evaluating: `torch.onnx.export` and others take it.

        Its weights are those that answer: their average, where one is kept.

        No compact layers, zeros where weights are not active; its state dict loads into the model as it was made.

        Raises:
            ConfigError: the model cannot be copied.
        """
        with self.averaged():
            made = dense_model(self.model)
        for module in made.modules():
            if type(module) is GrowingLinear:
                cast(Any, module).__class__ = nn.Linear
        return made

    # --- copies -------------------------------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """One more Learner, that goes on from here by itself, to the same bits; its observers are copies, too."""
        if self.average is not None and self.average.answers:
            raise ConfigError(ANSWERS_NOW)
        if self._learning:
            raise ConfigError("a Learner is copied before or after learn and observe, not inside: save it there")
        made = memo[id(self)] = type(self).__new__(type(self))
        try:
            vars(made).update(copy.deepcopy(vars(self), memo))
        except (TypeError, RuntimeError, AttributeError) as error:  # an open file of an observer, a computed weight
            raise ConfigError(f"a part of the Learner cannot be copied: {one_line(error)}; {KEPT}") from error
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse pickle, which executes what it reads, and a shallow copy, which would train this one's model."""
        raise ConfigError(f"a Learner is not pickled: {KEPT}; copy.deepcopy(learner) makes a second one")

    # --- checkpoints --------------------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> Path:
        """Write a checkpoint into `directory`: `step-N/`, then `latest` names it; the one before it is kept.

        Safe at any moment between two steps, also from an observer of the events `SAFE`. Returns the checkpoint's
        folder.

        Raises:
            CheckpointError: it cannot be written, or a step is under way; the last one is as it was.
            TrainingError: weights are NaN or infinite; nothing is written.
        """
        return self._save_to(Store(folder_at(directory)))

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
        lr_schedule: Factor | None = None,
        device: str | torch.device = "cpu",
        backend: str = "auto",
        observers: Sequence[Observer] = (),
        checkpoint_dir: str | Path | None = None,
        checkpoint_every: int | str | None = None,
    ) -> Self:
        """A Learner that goes on from a checkpoint, to the same bits: `learn` the task it stands in, then the rest.

        What is ours is made again from the checkpoint: give only a model, method, sparsifier or optimizer of your own.

        Args:
            directory: what `save` was given, a run's `checkpoint` folder, one `step-N` of either, or a model file from
                a device (docs/device.md).
            lr_schedule: where it was a function of your own: that function.
            model, method, sparsifier, optimizer, device, backend, observers, checkpoint_dir, checkpoint_every:
                see Learner.

        Raises:
            CheckpointError: missing, damaged, hostile, or of another model, method or optimizer.
        """
        state = open_folder(folder_at(directory))
        parts = {"model": model, "method": method, "sparsifier": sparsifier}
        refusals.check_kinds(**(given := {name: part for name, part in parts.items() if part is not None}))
        with contextlib.nullcontext() if model is None else left_as_it_was(model, *given.values(), copies=True):
            made, settings = making.make(state, model, method, sparsifier, lr_schedule)
            learner = cls(
                *made,
                optimizer=optimizer or making.make_optimizer(state),
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

        Its tensors are the Learner's own and move on with it: `copy.deepcopy` it to go back to it (`restore`).

        Raises:
            CheckpointError: asked for in the middle of a step, or while a task begins or ends; or the model and its
                optimizer no longer fit each other.
        """
        if self._midway:
            raise CheckpointError(f"nothing can be saved in the middle of a step; save at {', '.join(SAFE)}")
        if (misfit := self._misfit()) is not None:
            raise CheckpointError(f"this state cannot be saved: {misfit}")
        if self.stream is not None:
            self.watch_loss.settle(self.stream)
        if self.position is not None:
            self.watch_loss.settle(self.position)
            self.watch_chance.settle(self.position)
            if self.position.data is None:
                self.position.data = saving.fingerprint(self.task.train.inputs, self.task.train.labels)
        return saving.capture(self)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `checkpoint_state()` of a Learner with the same model, method and settings, on any backend.

        Raises:
            CheckpointError: it is another's, or not well formed; where that is found late, nothing but another
                restore goes on from here.
        """
        saving.check_made_alike(self, state)
        saving.check_apart(self, state)
        self._torn = True  # until all of it is taken
        saving.restore(self, state)
        self._torn = False
        if self.latents is not None:
            self.latents.remember()


def _span(tasks: int) -> str:
    return f"0 to {tasks - 1}" if tasks else "none, as no task is learned yet"
