"""The training loop, over what `assembly` has put together: one task after another.

Legend: N batch, C classes of the whole stream.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sparcl import seeds
from sparcl.errors import ConfigError
from sparcl.learner import alone, apart, refusals, saving
from sparcl.learner import optimizer as optimizers
from sparcl.learner.asked import Asked
from sparcl.learner.assembly import Assembly
from sparcl.learner.average import ANSWERS_NOW
from sparcl.learner.budget import Budget
from sparcl.learner.interrupts import TORN, Held
from sparcl.learner.position import Position, StreamPosition
from sparcl.learner.schedule import clip
from sparcl.methods.method import Batch
from sparcl.streams.batches import steps as steps_of_epoch
from sparcl.streams.checked import checked
from sparcl.streams.lazy import Lazy
from sparcl.streams.pixels import check_kind
from sparcl.streams.task import Name, Task


class Training(Assembly):
    """The loop: one task after another, an epoch at a time, step by step; `Learner` is this and what comes after it."""

    _parts: apart.Parts | None = None
    """Of a step whose gradients are ranked by."""

    # --- learning -----------------------------------------------------------------------------------------------

    def learn(self, task: Task) -> None:
        """Learn one task; where a loaded state stands inside it, go on from there.

        The model is in training mode meanwhile, and in evaluation mode before and after. A task of your own is cast and
        checked as `streams.from_arrays` does it. PyTorch's global generators are the Learner's own until this returns,
        for its observers too; the caller's are then as they were. Ctrl-C ends it after the step that is under way,
        where it can be saved, and `learn` again goes on to the same bits; a second one ends it at once.

        Raises:
            TrainingError: the loss became NaN or infinite (names task, epoch and step).
            DataError: the task cannot be trained on.
            ConfigError: it is not the next, or the model and its optimizer no longer fit each other or the task.
            CheckpointError: a loaded state stands inside a task with other data; or a checkpoint cannot be written.
        """
        if self._learning:
            raise ConfigError("learn was called inside a step: leave it first")
        optimizers.check_trained(self.optimizer)
        if (misfit := self._misfit()) is not None:
            raise ConfigError(misfit)
        task, new = self.classes.bind(task, self.learned)
        task = checked(task)
        refusals.check_turn(task, self.learned)
        if self.stream is not None:
            self.watch_loss.settle(self.stream)
        with Held() as held:
            with self._training():
                self._learn(task, new, held)
            self.tell("task.end", {"task": task.index})

    @contextlib.contextmanager
    def _training(self) -> Iterator[None]:
        """Gradients and the Learner's own generators in here, and afterwards evaluation mode, whatever was raised."""
        self._learning = True
        try:
            with self.generators.lent(), torch.inference_mode(False), torch.enable_grad():
                yield
        finally:
            self._learning = False
            self.model.eval()

    def _misfit(self) -> str | None:
        """What of the model has changed so that it would not train as it seems, in one line."""
        if self._torn:
            return TORN
        if self.average is not None and self.average.answers:
            return ANSWERS_NOW
        by_parameter = self.method.name if self.method.by_parameter else ""
        return self.trained.misfit(self.model, self.optimizer, self.sparsifier.layers, by_parameter=by_parameter)

    def _learn(self, task: Task, new: Sequence[Name], held: Held) -> None:
        """Learn a task that is well formed and the next one, and whose new classes are these."""
        with self.classes.extended(new, self.optimizer, self.generators.head):
            self._enter(task)
        position = self.position
        assert position is not None
        while position.order is not None or not self.budget.over(position):  # an epoch that was begun ends
            self._begin_epoch(position)
            while position.upcoming(self.drop_last) and not self.budget.over(position):
                self._step(position)
                held.check()
            self.watch_loss.settle(position)
            self.watch_chance.end_epoch(position)
            position.epoch, position.step, position.cursor, position.order = position.epoch + 1, 0, 0, None
            self.tell("epoch.end", {"task": position.task, "epoch": position.epoch - 1})
        with self._under_way():
            self.sparsifier.end_task()
            self.method.end_task(self.trained_on)
        self.pace += self.budget.paces(position)
        if not position.learned:
            figures = {"task": task.index, "accuracy": position.accuracy, "chance": self.watch_chance.most}
            self.tell("learner.chance", figures)
        self.position = None
        self.budget = Budget.under_way(self.settings["budget"], None)
        self.learned += 1

    def _columns_for(self, task: Task) -> int:
        """Of the logits that the model answers a first batch of the task with; see `check_fit`."""
        fits = (self.model, self.method, task, self.device, self.batch_size)
        prunes_by_default = self.sparsifier.prunes and getattr(self.sparsifier, "prunable", None) is None
        if self.steps > 0 or not prunes_by_default:
            return refusals.check_fit(*fits, grows=self.classes.grows)
        with refusals.layers_called(self.model) as called:
            columns = refusals.check_fit(*fits, grows=self.classes.grows)
        refusals.warn_of_pruned_ends(called, self.sparsifier)
        return columns

    def _enter(self, task: Task) -> None:
        """Bind to the task; begin it unless a loaded state stands inside it."""
        check_kind(task.train.inputs, self.stored_as, f"the inputs of task {task.index + 1}")
        if self.method.buffer is not None and self.latents is None:
            self.method.buffer.check_inputs(task.train.inputs)
        columns = 0
        if self.position is None:
            columns = self._columns_for(task)
            alone.check_task(self.model, task, self.frozen.modules())
            self.method.check_task(task)
        else:
            saving.check_task(self.position, task, self.sparsifier)
        if self.latents is not None:
            self.latents.check_same()
        trained = self._trained_on(task)
        self._mark = time.perf_counter()  # what goes before is no training
        if self.position is None:
            self.method.make_room(trained, columns)
        self.task, self.trained_on, self.transform = task, trained, task.transform
        self.stored_as = task.train.inputs.dtype
        self.classes.note(task)
        self.watch_chance.begin_task(task)
        self.tasks = [*(known for known in self.tasks if known.index < task.index), task]
        self.inputs, self.labels = trained.train.inputs.to(self.device), trained.train.labels.to(self.device)
        losses = Asked(*self._lent(len(task.train))).losses()
        if self.position is not None:
            self.sparsifier.resume_task(losses)
            self.method.resume_task(trained)
            return
        self.tell("task.begin", {"task": task.index, "classes": list(task.classes), "samples": len(task.train)})
        if self.latents is not None:
            self.tell("latents.computed", {"task": task.index, "samples": len(task.train)})
        self.frozen.train()
        seeds.seed_torch(seeds.derive(self.seed, f"torch/{task.index}"), self.device)  # what a model draws: dropout
        with self._under_way():
            self.method.begin_task(trained)
            epochs = int(self.budget.amount) if self.budget.kind == "epochs" else 1
            self.sparsifier.begin_task(task.index, samples=len(task.train), epochs=epochs, losses=losses)
        position = self.budget.begin(task.index, self.pace)
        self.position, self.stream = position, None  # not before: a state saved until now begins the task anew

    def _trained_on(self, task: Task) -> Task:
        """The task as the method sees it: itself or, where there is a front, with latents in its place."""
        if self.latents is None:
            return task

        def tell(done: int) -> None:
            self.tell("latents.batch", {"task": task.index, "done": done, "of": len(task.train)})

        trained = self.latents.of(task, self.device, tell)
        if self.method.buffer is not None:
            self.method.buffer.check_inputs(trained.train.inputs)
        return trained

    def _begin_epoch(self, position: Position) -> None:
        """Draw the epoch's order, less what DDR has removed; a resumed epoch has it already."""
        self.frozen.train()
        if position.order is not None:
            return
        with self._under_way():
            drawn = torch.randperm(len(self.task.train), generator=self.generators.order)
            position.plan(self.sparsifier.keep(drawn), self.batch_size, self.drop_last)
            self.sparsifier.begin_epoch(position.epoch, position.planned_steps)
        # what a dense host would make of the task; under other budgets than epochs it makes as many steps as this one
        dense_steps, _, dense_last = steps_of_epoch(len(self.task.train), self.batch_size, self.drop_last)
        figures = {"task": position.task, "epoch": position.epoch, "steps": position.planned_steps}
        dense = {"dense_steps": dense_steps, "dense_last": dense_last, "dense_as_long": self.budget.kind != "epochs"}
        self.tell("epoch.begin", {**figures, **dense})

    def _step(self, position: Position) -> None:
        """One step, unless a removal at this very step has left too few samples of this epoch."""
        with self._under_way():
            if (done := self._train(position)) is None:
                return
            loss, samples = done
            now = time.perf_counter()
            with self._moving():  # the weights have
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
        spent = self.budget.spent(position)
        self.method.begin_step(spent)
        assert position.order is not None
        if not (samples := position.upcoming(self.drop_last)):
            return None
        ids = position.order[position.cursor : position.cursor + samples]
        return self._pass(self._assemble(ids), position, spent), samples

    def _pass(self, batch: Batch, position: Position | StreamPosition, spent: float) -> Tensor:
        """Forward, backward, optimizer, memory; the masks have moved already, `spent` of the budget is spent."""
        ids = batch.ids
        if self.method.buffer is not None and isinstance(self.task.train.inputs, Lazy) and self.latents is None:
            self.method.buffer.check_storable(batch.raw)  # later the weights would have moved
        self.tell("step.begin", {"samples": len(ids)})
        wanted = self.sparsifier.wants_gradients()
        parts = self._parts = apart.Parts(self.sparsifier.layers, self.tell) if wanted else None
        with self._looked_at(), self._in_parts(), apart.cut(self.rest, parts):
            loss, logits = self.method.loss(batch)
            self.watch_loss(loss, position)
            if isinstance(position, Position):
                self.watch_chance(logits, batch.labels)
            self.sparsifier.after_forward(ids, logits, batch.labels)
            self.optimizer.zero_grad(set_to_none=True)
            if parts is None:
                loss.backward()  # type: ignore[no-untyped-call]
            else:
                parts.backward(loss, len(ids), lambda logits: self.method.single_head_loss(logits, batch))
            self.method.after_backward(batch)
            if self.micro is not None:
                self.micro.check_passed()
        if parts is not None:
            parts.finish(self.sparsifier)
        self.sparsifier.after_backward()  # it has the last word on what moves
        clip(self.optimizer, self.settings["clip_grad_norm"])
        with self._moving():
            with self.rate.applied(self.optimizer, spent):
                optimizers.step(self.optimizer)
            self.sparsifier.after_step()
            if self.average is not None:
                self.average.after_step(position.done + 1)
            self.method.after_step(batch, logits)
        return loss

    @contextlib.contextmanager
    def _moving(self) -> Iterator[None]:
        """The weights move and samples are remembered: half of it is no state to save, or to make that step from."""
        try:
            yield
        except Exception:
            self._torn = True
            raise

    @contextlib.contextmanager
    def _looked_at(self) -> Iterator[None]:
        """The first step shows what the model answers while it trains: until then it was asked evaluating."""
        with contextlib.nullcontext() if self._trains else refusals.training_answers(self.rest):
            yield
        self._trains = True

    def _in_parts(self) -> contextlib.AbstractContextManager[None]:
        """Passes in here are made in micro-batches, where these are asked for."""
        return contextlib.nullcontext() if self.micro is None else self.micro.applied()

    def _lent(self, samples: int) -> tuple[Any, ...]:
        """What an `Asked` of so many samples is made of."""
        drawn = (self.generators.importance, samples, self.batch_size)
        return self.method, self.sparsifier, self._assemble, *drawn, self.tell, self._in_parts

    def _begin_step(self, position: Position) -> None:
        removed = self.sparsifier.removed
        self.sparsifier.begin_step(position.step, self.budget.schedule(position))
        if self.sparsifier.removed != removed:
            position.shorten(self.sparsifier.keep, self.batch_size, self.drop_last)

    def _assemble(self, ids: Tensor) -> Batch:
        """The batch of the samples `ids` (int64 [N], on the CPU)."""
        where = ids.to(self.device, non_blocking=True)
        raw, labels = self.inputs[where], self.labels[where]
        return Batch(ids, raw, self._augment(raw), labels, self.trained_on)

    def _augment(self, raw: Tensor) -> Tensor:
        return self.trained_on.transform.train(raw, self.generators.augment)

    @contextlib.contextmanager
    def _under_way(self) -> Iterator[None]:
        """What happens in here happens as one: a state taken meanwhile would be neither the one before nor after."""
        self._midway = True
        try:
            yield
        except Exception:  # what is refused has been undone, a loss of NaN moves no weight, and else see `_moving`
            raise
        except BaseException:
            self._torn = True
            raise
        finally:
            self._midway = False

    def _read_replay(self, backward: Callable[[], None]) -> None:
        """Send a method's L(M) back, and read it where the step's gradients are ranked by."""
        if self._parts is None:
            backward()
        else:
            self._parts.read_after(backward)
