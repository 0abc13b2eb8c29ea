"""The ledger of FLOPs: what training executes, what the paper would count, and what the dense host would execute.

Legend: F multiply-add FLOPs (2 a multiply-add) of a dense layer for one sample; K active weights of a layer, U those of
them that are updated. A weight of a layer does one multiply-add at each output position and sample, so every count
here is an exact integer: 2 · positions · weights · samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from sparcl.nn.layers import SparseLayer, is_weighted, weight_of

Counts = Mapping[str, tuple[int, int]]
"""By layer name: active weights and, of them, those that are updated. Layers that are not named are dense."""

PHASES = ("forward", "backward", "importance", "other")
"""Of the FLOPs executed: the passes of the training steps, replay's among them; the passes that rank weights and
gradients; what a method computes when a task begins or ends."""

UNCHANGED = ("step.", "importance.", "evaluate.")
"""Events that no mask moves at, by the start of their names."""


@dataclass(frozen=True)
class Call:
    """One use of a convolution or linear layer in one forward pass of a model."""

    name: str
    weights: int
    """Of the dense layer."""
    positions: int
    """Output positions of a sample: multiply-adds that one weight does."""
    trained: bool
    """Whether an ordinary backward pass asks for the weight gradient ..."""
    passes_on: bool
    """... and for the input gradient (not so in the first layer)."""
    ranked: bool
    """Whether an importance pass asks for the weight gradient ..."""
    ranks_below: bool
    """... and for the input gradient: only as far down as there are prunable layers."""


@dataclass(frozen=True)
class Costs:
    """FLOPs of one sample, by kind of pass."""

    forward: int
    backward: int
    """Input gradients where they are needed, weight gradients at the updated weights."""
    importance: int
    """Backward pass of an importance gradient: weight gradients at all active weights of the prunable layers."""
    ranked: int
    """Of that, the weight gradients."""
    frozen: int
    """Weight gradients at the active weights that are not updated, which only a step that is ranked by computes."""
    paper_backward: int
    """An input gradient for every layer, the first included, and weight gradients at the updated weights; none of
    either in a frozen part at the front."""


class Ledger:
    """An observer of a Learner that counts FLOPs in the two conventions of the field.

    *executed*: every multiply-add of every pass that training asks for: forward; input gradients, except where none is
    needed; weight gradients at the updated weights only; replay with its backward pass; the passes that rank weights
    and gradients (for RigL and SNIP, which rank all positions: the pass over a fresh batch, and each prunable layer
    once more with all its weights); what a method computes when a task begins or ends. Neither evaluation is counted
    nor the batch that a model answers before each task to show that it fits. These are the sparse operations, which
    the native backend performs; the reference backend multiplies by zeros instead and is charged the same, so that a
    run's figure does not depend on where it was computed.

    *paper* (SparCL, table 1): for the task's batch a forward pass, an input gradient of every layer and a weight
    gradient; for replay the forward pass only; nothing for ranking.

    *dense*: what the same method would execute without a sparsifier: all weights, all samples, no ranking.

    As in the paper, BatchNorm, activations, pooling and the optimizer are not counted, and of layers with weights only
    convolutions and linear ones are (`left_out` names others). Forward passes are seen at the model as a whole: what
    calls parts of it goes uncounted.

    Args:
        model: the network that is trained; a deep copy of it (a teacher) is counted as well.
        layers: its prunable layers; empty for the dense sparsifier.
        input_shape: of one sample, without the batch dimension.
        front: what comes before `model`, computed once for each sample of a task; it is counted when that is told.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[SparseLayer],
        input_shape: tuple[int, ...],
        front: nn.Module | None = None,
    ) -> None:
        self.phases = dict.fromkeys(PHASES, 0)
        self.paper = self.dense = 0
        self.samples_seen = self.samples_removed = 0
        self.front = None if front is None else Profile(front, (), input_shape)
        self.input_shape = input_shape if front is None else _output_shape(front, input_shape)
        self._in_task = self._importance = self._evaluating = False
        self._step_samples: int | None = None  # of the task's batch; None between steps
        self._step_dense = 0
        self._batch = 0  # samples of the task's first step: what every step of a dense host takes
        self._missing_steps = 0  # of this pass over the task, as a dense host would make it
        self._dense_last = 0  # samples of the last of them
        self._dense_pass = 0  # steps of its next pass; 0: that begins with ours (a budget of epochs)
        self._last_step_dense = 0
        self.main = self.watch(model, layers)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # the copy of a watched model, a teacher, reports here too

    def watch(self, model: nn.Module, layers: Sequence[SparseLayer] = ()) -> Profile:
        """Count the forward passes of `model` from now on; for a second network that is no copy of the first."""
        profile = Profile(model, layers, self.input_shape)
        model.register_forward_pre_hook(partial(self._see, profile))
        return profile

    def _see(self, profile: Profile, model: nn.Module, args: tuple[Any, ...]) -> None:
        del model
        self.count(len(args[0]), grad=torch.is_grad_enabled(), profile=profile)

    def count(self, samples: int, *, grad: bool, profile: Profile | None = None) -> None:
        """A forward pass of `samples` samples, followed by a backward pass if `grad`, happens now."""
        if self._evaluating or not self._in_task:
            return
        profile = profile or self.main
        costs = profile.costs
        if self._importance:
            self.phases["importance"] += samples * (costs.forward + costs.importance * grad)
            return
        dense = samples * (profile.dense.forward + profile.dense.backward * grad)
        forward, backward = samples * costs.forward, samples * costs.backward * grad
        self.dense += dense
        if self._step_samples is None:
            self.phases["other"] += forward + backward
        else:
            self.phases["forward"] += forward
            self.phases["backward"] += backward
            self.paper += samples * costs.forward
            self._step_dense += dense

    def __call__(self, event: str, figures: Mapping[str, Any]) -> None:
        """Observe an event of the Learner."""
        if "dense_gradient_samples" in figures:  # a forward and a backward pass with the active weights are counted
            # gradients at all weights come in their place, from one more forward pass of each layer with all of them
            rest = self.main.dense.ranked - self.main.costs.ranked + self.main.dense.ranked
            self.phases["importance"] += figures["dense_gradient_samples"] * rest
        if event == "importance.passed":
            costs = self.main.costs
            self.phases["importance"] += figures["extra"] * costs.importance + figures["samples"] * costs.frozen
            self.phases["importance"] += figures["repeated"] * (costs.backward + costs.frozen)
        if event == "step.recomputed":  # micro-batches; a dense host, and the paper, know of none
            self.phases["importance" if self._importance else "forward"] += figures["samples"] * self.main.costs.forward
        if not event.startswith(UNCHANGED):
            self.main.forget()
        match event:
            case "step.begin":
                self._begin_step(figures["samples"])
            case "step.end":
                self._end_step()
            case "importance.begin" | "importance.end":
                self._importance = event == "importance.begin"
            case "evaluate.begin" | "evaluate.end":
                self._evaluating = event == "evaluate.begin"
            case "epoch.begin":
                self._begin_epoch(figures["dense_steps"], figures["dense_last"], figures["dense_as_long"])
            case "epoch.end" if not self._dense_pass:
                self.dense += max(self._missing_steps, 0) * self._last_step_dense
                if self._missing_steps > 0:
                    self.dense -= (self._batch - self._dense_last) * self._dense_sample
                self._missing_steps = 0
            case "task.begin" | "task.end":
                self._in_task, self._batch, self._missing_steps = event == "task.begin", 0, 0
            case "latents.computed" if self.front is not None:
                passed = figures["samples"] * self.front.costs.forward
                self.phases["other"] += passed
                self.paper, self.dense = self.paper + passed, self.dense + passed
            case "ddr.remove":
                self.samples_removed += figures["removed"]

    def _begin_epoch(self, dense_steps: int, dense_last: int, as_long: bool) -> None:
        """A dense host makes as many passes as this one, or as many steps (`as_long`): then its passes go their way."""
        self._dense_last, self._dense_pass = dense_last, dense_steps if as_long else 0
        if not as_long or self._missing_steps == 0:
            self._missing_steps = dense_steps

    def _begin_step(self, samples: int) -> None:
        self._batch = self._batch or samples
        self._step_samples, self._step_dense = samples, 0
        self.samples_seen += samples
        self.paper += samples * self.main.costs.paper_backward

    def _end_step(self) -> None:
        """The dense host's step takes a full batch also where removal has left less than one, but for its last."""
        assert self._step_samples is not None
        dense_samples = self._dense_last if self._missing_steps == 1 else self._batch
        self.dense += (dense_samples - self._step_samples) * self._dense_sample
        self._last_step_dense = self._step_dense + (self._batch - self._step_samples) * self._dense_sample
        self._missing_steps = self._missing_steps - 1 or self._dense_pass
        self._step_samples = None

    @property
    def _dense_sample(self) -> int:
        """Of one sample of the task in a step of the dense host."""
        return self.main.dense.forward + self.main.dense.backward

    @property
    def executed(self) -> int:
        """FLOPs so far, of all phases."""
        return sum(self.phases.values())

    def totals(self) -> dict[str, int]:
        """FLOPs so far: `executed`, `paper` and `dense`."""
        return {"executed": self.executed, "paper": self.paper, "dense": self.dense}

    def state_dict(self) -> dict[str, int]:
        """All that is needed to go on, between two steps, as JSON values."""
        return {
            **self.phases,
            "paper": self.paper,
            "dense": self.dense,
            "samples_seen": self.samples_seen,
            "samples_removed": self.samples_removed,
            "in_task": int(self._in_task),
            "batch": self._batch,
            "missing_steps": self._missing_steps,
            "dense_last": self._dense_last,
            "dense_pass": self._dense_pass,
            "last_step_dense": self._last_step_dense,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from `state_dict()`."""
        self.phases = {phase: int(state[phase]) for phase in PHASES}
        self.paper, self.dense = int(state["paper"]), int(state["dense"])
        self.samples_seen, self.samples_removed = int(state["samples_seen"]), int(state["samples_removed"])
        self._in_task, self._batch = bool(state["in_task"]), int(state["batch"])
        self._missing_steps, self._last_step_dense = int(state["missing_steps"]), int(state["last_step_dense"])
        self._dense_last, self._dense_pass = int(state["dense_last"]), int(state.get("dense_pass", 0))
        self.main.forget()


class Profile:
    """What one sample costs in a model, by the geometry of its layers and the present masks."""

    def __init__(self, model: nn.Module, layers: Sequence[SparseLayer], input_shape: tuple[int, ...]) -> None:
        self.calls = calls(model, layers, input_shape)
        self.counts: Callable[[], Counts] = partial(counts, list(layers))
        self.dense = costs(self.calls, {})
        self._costs: Costs | None = None

    @property
    def costs(self) -> Costs:
        """With the present masks; kept until `forget`."""
        if self._costs is None:
            self._costs = costs(self.calls, self.counts())
        return self._costs

    def forget(self) -> None:
        """Masks may have moved."""
        self._costs = None


@torch.no_grad()
def _output_shape(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of what a model, evaluating, answers to one sample."""
    parameter = next(model.parameters())
    with _in_eval_mode(model):
        answer = model(torch.zeros(2, *input_shape, dtype=parameter.dtype, device=parameter.device))
    return tuple(answer.shape[1:])


UNCOUNTED = (nn.Conv3d, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear, _ConvTransposeNd)


def left_out(model: nn.Module) -> list[str]:
    """PyTorch's layers, name and kind, that multiply by weights and are no convolution or linear layer."""
    return [f"{name or 'model'} ({type(m).__name__})" for name, m in model.named_modules() if isinstance(m, UNCOUNTED)]


def counts(layers: Sequence[SparseLayer]) -> Counts:
    """Active and updated weights of each layer."""
    return {
        layer.name: (len(layer.index), len(layer.index) if layer.chosen is None else int(layer.chosen.sum()))
        for layer in layers
    }


def costs(calls: Sequence[Call], counts: Counts) -> Costs:
    """FLOPs of one sample with `counts` active and updated weights."""
    forward = backward = importance = ranked = frozen = paper_backward = 0
    for call in calls:
        active, updated = counts.get(call.name, (call.weights, call.weights))
        one, grad = 2 * call.positions * active, 2 * call.positions * updated
        forward += one
        backward += one * call.passes_on + grad * call.trained
        ranked += one * call.ranked
        frozen += (one - grad) * call.trained
        importance += one * call.ranks_below + one * call.ranked
        paper_backward += one * (call.trained or call.passes_on) + grad * call.trained
    return Costs(forward, backward, importance, ranked, frozen, paper_backward)


def calls(model: nn.Module, layers: Sequence[SparseLayer], input_shape: tuple[int, ...]) -> list[Call]:
    """The layers' geometry, and how far down gradients go, from dry passes over zeros that leave no trace."""
    prunable = {id(layer.parameter) for layer in layers}
    trained = _dry_run(model, input_shape, {id(p) for p in model.parameters() if p.requires_grad})
    ranked = _dry_run(model, input_shape, prunable)
    return [
        Call(t.name, t.weights, t.positions, t.needs_weight, t.needs_input, r.needs_weight, r.needs_input)
        for t, r in zip(trained, ranked, strict=True)
    ]


@dataclass(frozen=True)
class _Seen:
    name: str
    weights: int
    positions: int
    needs_weight: bool
    needs_input: bool


def _dry_run(model: nn.Module, input_shape: tuple[int, ...], wanted: set[int]) -> list[_Seen]:
    """What autograd would compute for the gradients of the parameters `wanted` (ids): it marks what leads to them."""
    seen: list[_Seen] = []
    batch = 2

    def look(name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        parameter, shape = weight_of(module)
        positions = output.numel() // (batch * shape[0])
        seen.append(_Seen(name, math.prod(shape), positions, id(parameter) in wanted, bool(args[0].requires_grad)))

    hooks = [m.register_forward_hook(partial(look, name)) for name, m in model.named_modules() if is_weighted(m)]
    parameter = next(model.parameters())
    try:
        with _in_eval_mode(model), _only_requiring(model, wanted), torch.enable_grad():
            model(torch.zeros(batch, *input_shape, dtype=parameter.dtype, device=parameter.device))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Nothing is drawn and no running statistic moves; every module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _only_requiring(model: nn.Module, wanted: set[int]) -> Iterator[None]:
    """Only the parameters `wanted` (ids) require a gradient."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for parameter in before:
            parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)
