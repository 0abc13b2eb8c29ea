"""What a Learner is made of, checked and tied to each other: model, method, sparsifier, optimizer, backend, settings.

A part tells the next what it may do: what is frozen is held back from the optimizer, the backend converts the layers
before the optimizer takes their parameters, and the method is given the model that the sparsifier has pruned.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sparcl import seeds
from sparcl.checkpoint import Checkpointer, Interval, Store
from sparcl.learner import alone, micro, refusals, saving
from sparcl.learner import optimizer as optimizers
from sparcl.learner.average import Average, check_share
from sparcl.learner.backend import give_to_backend
from sparcl.learner.budget import Budget
from sparcl.learner.chance import ChanceWatch
from sparcl.learner.classes import Classes
from sparcl.learner.frozen import Frozen
from sparcl.learner.latents import Answering, Latents
from sparcl.learner.loss_watch import LossWatch
from sparcl.learner.micro import MicroBatches
from sparcl.learner.position import Position, StreamPosition
from sparcl.learner.schedule import Factor, Rate, check_clip, check_warmup
from sparcl.learner.telling import Observer, Telling, tell_all
from sparcl.learner.trained import Trained
from sparcl.learner.undo import left_as_it_was
from sparcl.methods.finetune import Finetune
from sparcl.methods.method import Host, Method
from sparcl.nn import memory
from sparcl.nn.sizes import checked_shape
from sparcl.sparsity.sparsifier import Sparsifier
from sparcl.streams.augment import Transform
from sparcl.streams.task import Name, Task

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class Assembly(Telling):
    """The parts, and what has been learned with them: nothing yet.

    Arguments: see `Learner`. What is refused leaves the parts as they were.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method | None = None,
        sparsifier: Sparsifier | None = None,
        *,
        optimizer: MakeOptimizer | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        lr_schedule: str | Factor | None = None,
        warmup: float = 0.0,
        clip_grad_norm: float | None = None,
        average: float | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        seconds: float | None = None,
        pace: Sequence[Sequence[int]] = (),
        batch_size: int = 32,
        replay_batch_size: int | None = None,
        micro_batch: int | None = None,
        drop_last: bool | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        backend: str = "auto",
        layer_choice: Mapping[str, str] | None = None,
        input_shape: tuple[int, ...] | None = None,
        classes: Sequence[Name] | None = None,
        freeze: str | Sequence[str] | None = None,
        latents: str | None = None,
        observers: Sequence[Observer] = (),
        checkpoint_dir: str | Path | None = None,
        checkpoint_every: int | str | None = None,
    ) -> None:
        self.method = Finetune() if method is None else method
        self.sparsifier = Sparsifier() if sparsifier is None else sparsifier
        refusals.check_parts(model, self.method, self.sparsifier, optimizer, observers)
        self.method.check_unbound()
        self.sparsifier.check_unbound()
        self.batch_size, replay, self.seed = refusals.check_settings(batch_size, replay_batch_size, seed)
        refusals.check_replay(replay_batch_size, self.method)
        rate, decay = optimizers.rates(lr, weight_decay, of_ours=optimizer is None)
        refusals.check_checkpoints(checkpoint_dir, checkpoint_every)
        clip_grad_norm, warmup = check_clip(clip_grad_norm), check_warmup(warmup)
        input_shape = None if input_shape is None else checked_shape(input_shape)
        self.drop_last = refusals.check_last(drop_last, self.sparsifier.drops_last)
        average = check_share(average, type(self.method))
        self.rate = Rate(lr_schedule, warmup)
        micro_batch = micro.check(micro_batch, self.batch_size, type(self.method))
        spared = "micro-batches" if micro_batch is not None else "latents" if latents is not None else None
        refusals.check_activations(model, (self.batch_size, replay), spared)
        self.method.check(self.sparsifier.name, prunes=self.sparsifier.prunes, moves=self.sparsifier.moves)
        self.observers = list(observers)
        with left_as_it_was(model, self.method, self.sparsifier):
            self.recipes = saving.recipes(model, self.method, self.sparsifier)
            self.device = refusals.device_of(device)
            self.budget = Budget.of(epochs, steps, seconds, pace)
            self.pace = [list(steps) for steps in pace]
            self._take(model, freeze, latents, classes, batches=(self.batch_size, replay_batch_size, micro_batch))
            self.backend, self.layer_choice = give_to_backend(
                self.model,
                self.sparsifier,
                self.device,
                backend,
                batch_size=micro_batch or self.batch_size,
                layer_choice=layer_choice or {},
                input_shape=input_shape,
                tell=partial(tell_all, observers),
            )
            self.settings = saving.settings_of(
                self,
                replay_batch_size=replay,
                clip_grad_norm=clip_grad_norm,
                average=average,
                micro_batch=micro_batch,
                input_shape=input_shape,
            )
            self._checkpointer = self._saving(checkpoint_dir, checkpoint_every)
            make = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=rate, weight_decay=decay))
            self._train_with(make, average, micro_batch)
            self._tie(replay)
        self.trained.claim(self.sparsifier.layers)
        self._begin()

    def _take(
        self,
        model: nn.Module,
        freeze: str | Sequence[str] | None,
        latents: str | None,
        classes: Sequence[Name] | None,
        *,
        batches: tuple[int, int | None, int | None],
    ) -> None:
        """The model: which parts of it learn, and which columns it has."""
        self.model = model.to(self.device).eval()  # training mode is for `learn` alone
        memory.own_memory(self.model)
        self.frozen = Frozen(self.model, freeze)
        alone.check_batches(self.model, *batches, self.frozen.modules())  # a frozen norm takes no statistics of a batch
        self.latents = None if latents is None else Latents(self.model, self.frozen, latents, self.method)
        self.rest = self.model if self.latents is None else self.latents.rest
        """What is trained: the model, or what of it lies behind a front that gives latents."""
        self.answering = Answering(self.method, self.latents)
        self.classes = Classes(self.model, self.method, classes)
        self.classes.check_dense(self.sparsifier)
        self.transform: Transform | None = None
        self.stored_as: torch.dtype | None = None
        """Of the samples that were learned; None where that is not known."""

    def _saving(self, directory: str | Path | None, every: int | str | None) -> Checkpointer | None:
        """The observer that saves, where it is asked for."""
        if directory is None:
            return None
        return Checkpointer(Interval.parse(every), partial(self._save_to, Store(Path(directory))))

    def _train_with(self, make: MakeOptimizer, average: float | None, micro_batch: int | None) -> None:
        """What moves the weights: the optimizer, the average that follows it, the sparsifier over both."""
        parameters = [p for p in self.model.parameters() if id(p) not in self.frozen.held_back]
        self.optimizer = optimizers.made(make, parameters)
        self.rate.check(self.optimizer)
        self.trained = Trained(self.model, self.optimizer)
        self.average = None if average is None else Average(self.model, self.optimizer, average)
        self.sparsifier.attach(self.model, self.optimizer, self.seed)
        if self.latents is not None:
            self.sparsifier.trains(self.rest)
            if self.backend == "native":
                self.latents.convert()
        self.micro = None if micro_batch is None else MicroBatches(self.rest, micro_batch, self.tell)
        self.sparsifier.notify = self.tell

    def _tie(self, replay_batch_size: int) -> None:
        """The method to all of it."""
        self.generators = seeds.Generators(self.seed, self.device)
        self.method.attach(
            Host(
                model=self.rest,
                augment=self._augment,
                generator=self.generators.method,
                device=self.device,
                replay_batch_size=replay_batch_size,
                mask_gradients=self.sparsifier.mask_gradients,
                scale_gradients=self.sparsifier.scale_gradients,
                read_replay=self._read_replay,
            )
        )

    def _begin(self) -> None:
        """Nothing is learned yet."""
        self.tasks: list[Task] = []
        self.position: Position | None = None
        self.stream: StreamPosition | None = None
        self.learned = self.steps = 0
        self._midway = self._torn = self._learning = self._trains = False
        self.watch_loss, self.watch_chance = LossWatch(), ChanceWatch()
        self._mark = 0.0  # until when time is counted

    @abstractmethod
    def _augment(self, raw: Tensor) -> Tensor:
        """Inputs as the present task trains on them."""

    @abstractmethod
    def _read_replay(self, backward: Callable[[], None]) -> None:
        """Send a method's L(M) back, and read it where the step's gradients are ranked by."""
