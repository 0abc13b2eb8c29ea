"""iCaRL (Rebuffi et al., CVPR 2017): exemplars chosen by herding, answers by the nearest mean of exemplars.

Legend: N batch, C classes of the whole stream, S classes seen so far, D features.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparcl.checkpoint import checks
from sparcl.errors import ConfigError
from sparcl.methods.balanced import BalancedBuffer
from sparcl.methods.method import Batch, RehearsalMethod, only
from sparcl.methods.respond import check_answers, classifier, classifier_inputs, features_of, loaded_answers, logits_of
from sparcl.streams.lazy import select
from sparcl.streams.task import Task


class ICaRL(RehearsalMethod):
    """Binary cross-entropy on the task's samples and the exemplars together (Algorithm 3).

    Old classes are taught what the network answered before the task began, new ones their labels. Exemplars join a
    batch in the proportion that they have in the union of both. Features are the classifier's input, L2-normalised.
    """

    name = "icarl"
    uses_classifier = True
    answers_need = "the mean feature of each class's exemplars, the nearest of which answers"
    answers_unseen = False

    stores_logits = True
    fills_by_task = True

    def __init__(
        self,
        buffer_size: int | None = None,
        *,
        buffer_bytes: int | str | None = None,
        buffer_storage: str = "raw",
    ) -> None:
        super().__init__(buffer_size, buffer_bytes=buffer_bytes, buffer_storage=buffer_storage)
        self.buffer: BalancedBuffer = BalancedBuffer(**self.kept_as)
        self.old: list[int] = []
        self.seen: list[int] = []
        self.recorded: Tensor | None = None  # logits [samples of the task, C] of the network before the task
        self._means: Tensor | None = None  # [S, D]; None when the network has changed since

    def check_stream(self, tasks: int, classes: int) -> None:
        del tasks
        self.buffer.share(classes)

    def check_task(self, task: Task) -> None:
        if again := [k for k in task.classes if k in self.old]:
            raise ConfigError(
                f"class {again[0]} of task {task.index + 1} was learned in an earlier task, and method {self.name}"
                " chooses the exemplars of a class once: bring new classes"
            )

    def begin_task(self, task: Task) -> None:
        self.seen = [*self.old, *task.classes]
        self.buffer.share(len(self.seen))  # refuses a buffer that is too small before any work
        if self.old:
            self.recorded = logits_of(self.host.model, task.train.inputs, task, self.host.device)

    def resume_task(self, task: Task) -> None:
        check_answers(self.recorded, task)
        self.seen = [*self.old, *task.classes]

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        before = None if self.recorded is None else self.recorded[batch.ids.to(self.host.device)]
        inputs, labels = batch.inputs, batch.labels
        wanted = len(labels) * len(self.buffer) / len(batch.task.train)
        count = int(wanted + torch.rand((), generator=self.host.generator).item())  # on average as many as wanted
        replay = self.buffer.sample(count, self.host.generator, self.host.augment) if count else None
        if replay is not None and replay.logits is not None and before is not None:
            inputs, labels = torch.cat([inputs, replay.inputs]), torch.cat([labels, replay.labels])
            before = torch.cat([before, replay.logits])
        logits = self.host.model(inputs)
        return self.distillation(logits, labels, before), only(logits[: len(batch.labels)], tuple(self.seen))

    def distillation(self, logits: Tensor, labels: Tensor, before: Tensor | None) -> Tensor:
        """Binary cross-entropy over the seen classes; old ones have σ(`before`, [N, C]) as their targets."""
        targets = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
        if before is not None:
            targets[:, self.old] = before[:, self.old].sigmoid()
        return F.binary_cross_entropy_with_logits(logits[:, self.seen], targets[:, self.seen])

    def replay_importance_loss(self) -> Tensor | None:
        if (replay := self.replay()) is None:
            return None
        return self.distillation(self.host.model(replay.inputs), replay.labels, replay.logits)

    def after_step(self, batch: Batch, logits: Tensor) -> None:
        del batch, logits
        self._means = None

    def end_task(self, task: Task) -> None:
        """Herd exemplars of the new classes, then note what the network answers to all exemplars."""
        model, device, samples = self.host.model, self.host.device, task.train
        share = self.buffer.share(len(self.seen))
        exemplars = []
        for k in task.classes:  # all are read before any is taken in: what cannot be read leaves the memory as it was
            of_class = (samples.labels == k).nonzero().squeeze(1)
            features = features_of(model, select(samples.inputs, of_class), task, device)
            chosen = of_class[herding(features, share).cpu()]
            exemplars.append((samples.inputs[chosen].to(device), samples.labels[chosen].to(device)))
            self.buffer.check_storable(exemplars[-1][0])
        for inputs, labels in exemplars:
            self.buffer.admit(inputs, labels, None, labels)
        self.buffer.logits = logits_of(model, self.buffer.recall(), task, device)
        self.old, self.recorded, self._means = self.seen, None, None

    def predict(self, inputs: Tensor, task: Task) -> Tensor:
        """Minus the squared distance to each class's mean of exemplars; before there are any, the logits."""
        return self.answer(self.host.model, inputs, self.answer_state(task))

    def answer_state(self, task: Task) -> dict[str, Tensor]:
        """`means` [S, D] float32, L2-normalised, and the `classes` [S] int64 that they are of."""
        if not self.old:
            return {}
        if self._means is None:
            self._means = self._class_means(task)
        return {"means": self._means, "classes": torch.tensor(self.old, device=self._means.device)}

    @classmethod
    @torch.no_grad()
    def answer(cls, model: nn.Module, inputs: Tensor, state: Mapping[str, Tensor], task: int | None = None) -> Tensor:
        del task
        with classifier_inputs(model) as seen:
            logits: Tensor = model(inputs)
        if not state:
            return logits
        features = F.normalize(seen[-1].flatten(1), dim=1)
        scores = torch.full_like(logits, float("-inf"))
        scores[:, state["classes"]] = -torch.cdist(features, state["means"]).square()
        return scores

    @classmethod
    def as_network(cls, model: nn.Module, state: Mapping[str, Tensor], task: int | None = None) -> nn.Module:
        """As `NearestMean`; the model's classifier must be what it does last."""
        del task
        return NearestMean(model, state["means"], state["classes"]) if state else model

    def _class_means(self, task: Task) -> Tensor:
        """Normalised mean of the exemplars' features, [S, D], in the order of `old`."""
        assert self.buffer.labels is not None
        features = features_of(self.host.model, self.buffer.recall(), task, self.host.device)
        labels = self.buffer.labels[: len(self.buffer)]
        return F.normalize(torch.stack([features[labels == k].mean(dim=0) for k in self.old]), dim=1)

    def state_dict(self) -> dict[str, Any]:
        recorded = {} if self.recorded is None else {"recorded": self.recorded}
        return {**super().state_dict(), "old": self.old, **recorded}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.old, self._means = [checks.integer(k, "a class") for k in state["old"]], None
        self.recorded = loaded_answers(state.get("recorded"), self.host.device)


class NearestMean(nn.Module):
    """Minus the squared distance of normalised features to each class's mean, [N, C]; -inf where a class has none.

    Args:
        model: whose classifier makes its logits, last of all; it is copied.
        means: [S, D], L2-normalised.
        classes: int64 [S], the columns that they are of.
    """

    means: Tensor
    place: Tensor

    def __init__(self, model: nn.Module, means: Tensor, classes: Tensor) -> None:
        super().__init__()
        self.features = copy.deepcopy(model)
        head = classifier(self.features)
        columns = cast(nn.Linear, head).out_features
        name = next(name for name, module in self.features.named_modules() if module is head)
        self.features.set_submodule(name, nn.Identity())
        place = torch.full((columns,), len(means))
        place[classes] = torch.arange(len(means))
        self.register_buffer("means", means)
        self.register_buffer("place", place)

    def forward(self, inputs: Tensor) -> Tensor:
        features = F.normalize(self.features(inputs).flatten(1), dim=1)
        distances = (features.unsqueeze(1) - self.means).square().sum(dim=2)
        return F.pad(-distances, (0, 1), value=float("-inf")).index_select(1, self.place)


def herding(features: Tensor, count: int) -> Tensor:
    """Indices of `count` samples of `features` [N, D], each the one that brings their mean nearest to that of all
    (Algorithm 4); all samples, in that order, where there are fewer."""
    mean, total = features.mean(dim=0), torch.zeros_like(features[0])
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    chosen = []
    for k in range(1, min(count, len(features)) + 1):
        distance = torch.linalg.vector_norm(mean - (total + features) / k, dim=1)
        best = distance.masked_fill(~free, float("inf")).argmin()
        chosen.append(best)
        free[best] = False
        total = total + features[best]
    return torch.stack(chosen)
