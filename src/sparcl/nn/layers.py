"""One prunable layer, seen the same way whatever computes it.

Legend: K active weights of the layer; a *position* is an index into the flattened (row-major) dense weight.

TDM, DGM and the rivals speak of a layer only through `SparseLayer`: its active positions, the values there, and the
gradients there. `MaskedLayer` is the reference backend (a dense weight whose inactive entries are held at zero, on any
device); the native backend's compact modules implement the same interface without a dense weight.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from sparcl.errors import ConfigError
from sparcl.nn.positions import common

Prunable = Sequence[str] | Callable[[str, nn.Module], bool] | None
"""Which layers are pruned: names or shell patterns of names, a predicate, or None for the published choice."""


Weighted = nn.Conv1d | nn.Conv2d | nn.Linear
"""Dense layers that can be pruned."""


class SparseLayer(Protocol):
    """What a sparsifier may ask of, and do to, one prunable layer."""

    name: str
    shape: tuple[int, ...]
    """Shape of the dense weight: [O, I/groups, kh, kw], [O, I/groups, k] or [O, I]."""

    @property
    def parameter(self) -> nn.Parameter:
        """The tensor that the optimizer holds; only its active entries are ever non-zero."""

    @property
    def index(self) -> Tensor:
        """Active positions, int64 [K], ascending."""

    @property
    def chosen(self) -> Tensor | None:
        """Bool [K]: the active weights that are updated (DGM); None when all are."""

    def gather(self, like_parameter: Tensor) -> Tensor:
        """Entries [K] of a tensor laid out like `parameter` (itself, a gradient, optimizer state) at `index`."""

    def set_index(self, index: Tensor, optimizer: torch.optim.Optimizer | None = None) -> tuple[Tensor, Tensor]:
        """Make `index` the active set. Survivors keep weight and optimizer state, newcomers start at 0, fresh.

        Returned is where the survivors were in `index`, and where they are (`positions.common`).
        """

    def set_chosen(self, chosen: Tensor | None) -> None:
        """Choose which active weights, bool [K], are updated from now on (None: all)."""

    def compute_frozen(self, on: bool) -> None:
        """Whether the gradient of what is not chosen is computed all the same, until `mask_gradient` clears it."""

    def frozen_entries(self) -> Tensor | None:
        """Flat positions in `parameter` of the active weights that are not chosen; None when there is none."""

    def mask_gradient(self) -> None:
        """Clear the gradient of all that is inactive or not chosen (a no-op where it was never computed)."""

    def dense_gradient(self, inputs: Tensor, output_gradient: Tensor) -> Tensor:
        """∂L/∂W, of W's shape, at every position, active or not, from one call's input and gradient at its output."""


class MaskedLayer:
    """The reference backend's layer: the module's own dense weight, held at zero outside the active positions."""

    def __init__(self, name: str, module: Weighted) -> None:
        self.name = name
        self.module = module
        self.shape = tuple(module.weight.shape)
        self._index = torch.arange(module.weight.numel(), device=module.weight.device)
        self._chosen: Tensor | None = None
        self._trainable: Tensor | None = None  # bool, dense; None when every weight is active and chosen
        self._frozen: Tensor | None = None

    @property
    def parameter(self) -> nn.Parameter:
        return cast(nn.Parameter, self.module.weight)

    @property
    def index(self) -> Tensor:
        return self._index

    @property
    def chosen(self) -> Tensor | None:
        return self._chosen

    def gather(self, like_parameter: Tensor) -> Tensor:
        return like_parameter.detach().reshape(-1)[self._index]

    @torch.no_grad()
    def set_index(self, index: Tensor, optimizer: torch.optim.Optimizer | None = None) -> tuple[Tensor, Tensor]:
        weight = self.parameter
        survives = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
        new = index.to(weight.device)
        in_old, in_new = common(self._index, new, weight.numel())
        survives[new[in_new]] = True
        weight.masked_fill_(~survives.view(weight.shape), 0.0)
        if optimizer is not None:
            for key, state in elementwise_state(optimizer, weight).items():
                state.masked_fill_(~survives.view(weight.shape), fresh_state(optimizer, weight, key))
        self._index = new
        self.set_chosen(None)
        return in_old, in_new

    def set_chosen(self, chosen: Tensor | None) -> None:
        if chosen is not None and bool(chosen.all()):
            chosen = None
        self._chosen = chosen
        trainable = self._active()
        self._frozen = None
        if chosen is not None:
            self._frozen = self._index[~chosen.to(self._index.device)]
            trainable[self._frozen] = False
        self._trainable = None if bool(trainable.all()) else trainable.view(self.shape)

    def compute_frozen(self, on: bool) -> None:
        """Nothing: a dense weight's gradient is computed everywhere."""

    def frozen_entries(self) -> Tensor | None:
        return self._frozen

    def mask_gradient(self) -> None:
        if self._trainable is not None and self.parameter.grad is not None:
            self.parameter.grad.masked_fill_(~self._trainable, 0.0)

    def dense_gradient(self, inputs: Tensor, output_gradient: Tensor) -> Tensor:
        with torch.enable_grad():
            weight = self.parameter.detach().requires_grad_()
            output = torch.func.functional_call(self.module, {"weight": weight}, (inputs,))
        return torch.autograd.grad(output, weight, output_gradient)[0]

    def _active(self) -> Tensor:
        active = torch.zeros(self.parameter.numel(), dtype=torch.bool, device=self.parameter.device)
        active[self._index] = True
        return active


def sparse_layers(model: nn.Module, prunable: Prunable = None) -> list[SparseLayer]:
    """The prunable layers of a model, in module order.

    A layer keeps one `SparseLayer` for life, so TDM and DGM that are attached one by one see the same masks.

    Raises:
        ConfigError: no layer is prunable, a name matches none that is trained, a layer's weight is computed from other
            tensors (weight normalisation), or two layers have one.
    """
    layers: list[SparseLayer] = []
    for name in prunable_names(model, prunable):
        module = model.get_submodule(name)
        if isinstance(module, Weighted):
            if "weight" not in module._parameters:
                raise ConfigError(f"the weight of layer {name} is computed from others: leave it out of `prunable`")
            handle = module.__dict__.get("_sparse_layer")
            if handle is None:
                handle = module.__dict__["_sparse_layer"] = MaskedLayer(name, module)
        else:
            handle = module  # a compact module is its own SparseLayer
        handle.name = name  # as this model calls it, another may share the layer
        layers.append(cast(SparseLayer, handle))
    owners: dict[int, str] = {}
    for layer in layers:
        owner = owners.setdefault(id(layer.parameter), layer.name)
        if owner != layer.name:
            raise ConfigError(f"layers {owner} and {layer.name} share one weight: leave one of them out of `prunable`")
    return layers


def _is_frozen(layer: nn.Module) -> bool:
    """Whether a layer's weight is not trained: what moves a mask would write into it, so it is never pruned."""
    weight = layer._parameters.get("weight", layer._parameters.get("values"))  # dense or compact
    return weight is not None and not weight.requires_grad


def prunable_names(model: nn.Module, prunable: Prunable = None) -> list[str]:
    """Names of the layers to prune.

    By default the published choice, for any model: every convolution and linear layer except the first, the last
    (the classifier), strided 1×1 convolutions (shortcuts) and depthwise ones. For ResNet-18 these are the sixteen
    3×3 block convolutions (docs/method.md, choices). A layer that is frozen is none of them, and no predicate is asked.
    """
    weighted = {name: module for name, module in model.named_modules() if is_weighted(module)}
    candidates = {name: module for name, module in weighted.items() if not _is_frozen(module)}
    if prunable is None:
        inner = [name for name in list(weighted)[1:-1] if name in candidates]
        names = [name for name in inner if not _stays_dense(candidates[name])]
    elif isinstance(prunable, str):
        raise ConfigError(f"`prunable` is a list of names or patterns, not one string: use [{prunable!r}]")
    elif callable(prunable):
        names = [name for name, module in candidates.items() if prunable(name, module)]
    elif not isinstance(prunable, Collection) or not all(isinstance(pattern, str) for pattern in prunable):
        raise ConfigError(f"`prunable` is a list of names or patterns, or a predicate, not {prunable!r:.40}")
    else:
        names = [name for name in candidates if any(fnmatch.fnmatchcase(name, p) for p in prunable)]
        for pattern in prunable:
            matched = [name for name in weighted if fnmatch.fnmatchcase(name, pattern)]
            if matched and not any(name in candidates for name in matched):
                raise ConfigError(
                    f"layer {matched[0]} is not trained (requires_grad is False): leave it out of `prunable`"
                )
            if not matched:
                raise ConfigError(_no_match(model, pattern, list(candidates)))
    if not names:
        raise ConfigError(
            "the model has no prunable layer: it needs a Conv1d, Conv2d or Linear layer beside the first and the last"
            f" (found: {', '.join(candidates) or 'none'}{_other_layers(model)}{_frozen_layers(weighted)})"
            + (", or name layers of these with `prunable`" if candidates else "")
        )
    return names


def _no_match(model: nn.Module, pattern: str, candidates: list[str]) -> str:
    """Why a pattern of `prunable` names nothing that can be pruned."""
    for name, module in model.named_modules():
        if name and fnmatch.fnmatchcase(name, pattern) and next(module.parameters(), None) is not None:
            allowed = f"only Conv1d, Conv2d and Linear layers can be pruned, here: {', '.join(candidates) or 'none'}"
            return f"prunable layer {pattern!r} is a {type(module).__name__}: {allowed}"
    return f"prunable layer {pattern!r} matches none of: {', '.join(candidates) or 'no Conv1d, Conv2d or Linear layer'}"


def _other_layers(model: nn.Module) -> str:
    """Kinds of layers with a weight matrix that cannot be pruned, for those who look for theirs in a message."""
    own = {type(m).__name__: None for m in model.modules() if not is_weighted(m) and _has_matrix(m)}
    return f"; not prunable: {', '.join(own)}" if own else ""


def _frozen_layers(weighted: Mapping[str, nn.Module]) -> str:
    """The first frozen layer, for those who look for theirs in a message."""
    frozen = [name for name, module in weighted.items() if _is_frozen(module)]
    more = f" and {len(frozen) - 1} more" if len(frozen) > 1 else ""
    return f"; not trained, requires_grad is False: {frozen[0]}{more}" if frozen else ""


def _has_matrix(module: nn.Module) -> bool:
    return any(p.dim() > 1 for p in module.parameters(recurse=False))


def is_weighted(module: nn.Module) -> bool:
    """Whether a module is a convolution or linear layer, dense or compact."""
    return isinstance(module, Weighted) or hasattr(module, "weight_index")


def weight_of(module: nn.Module) -> tuple[nn.Parameter, tuple[int, ...]]:
    """The parameter that holds the weights of a convolution or linear layer, and the shape of the dense weight."""
    if isinstance(module, Weighted):
        return cast(nn.Parameter, module.weight), tuple(module.weight.shape)
    compact = cast(SparseLayer, module)
    return compact.parameter, compact.shape


def is_watched(module: nn.Module) -> bool:
    """Whether hooks, parametrizations or a `forward` of the user's hang on a module: it stays as it is."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or hasattr(module, "parametrizations") or "forward" in vars(module)


def _stays_dense(module: nn.Module) -> bool:
    kernel = getattr(module, "kernel_size", None)
    if kernel is None:
        return False
    stride, groups = cast(Any, module).stride, cast(Any, module).groups
    shortcut = all(size == 1 for size in kernel) and max(stride) > 1
    depthwise = groups > 1 and groups == cast(Any, module).in_channels
    return bool(shortcut or depthwise)


ELEMENTWISE_OPTIMIZERS: tuple[type[torch.optim.Optimizer], ...] = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adadelta,
    torch.optim.ASGD,
    torch.optim.Rprop,
)
"""Optimizers whose update of a weight looks at that weight alone, so that growth and freezing have a meaning."""


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that mixes weights (LBFGS, Muon, Adafactor, ...), naming those that work."""
    if not isinstance(optimizer, ELEMENTWISE_OPTIMIZERS):
        allowed = ", ".join(kind.__name__ for kind in ELEMENTWISE_OPTIMIZERS)
        raise ConfigError(
            f"optimizer {type(optimizer).__name__} looks at more than one weight at a time; use one of: {allowed}"
        )


def elementwise_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The optimizer's state tensors that hold one number for each entry of `parameter`."""
    state = optimizer.state.get(parameter, {})
    return {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == parameter.shape}


AVERAGE = "average"
"""What the optimizer's state of a parameter calls its average, where a Learner keeps one (`learner/average.py`)."""


def fresh_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, key: str) -> float:
    """The value an elementwise state starts with: 0, but for Adagrad's accumulator and Rprop's step size."""
    options = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    if isinstance(optimizer, torch.optim.Adagrad) and key == "sum":
        return float(options["initial_accumulator_value"])
    if isinstance(optimizer, torch.optim.Rprop) and key == "step_size":
        return float(options["lr"])
    return 0.0
