"""What a layer's output meets first: a normalisation, which makes its scale irrelevant, or another layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase

from sparcl.nn.layers import is_weighted

NORMS: tuple[type[nn.Module], ...] = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
NORM_FUNCTIONS = ("batch_norm", "instance_norm", "layer_norm", "group_norm", "rms_norm")
WEIGHTED_FUNCTIONS = ("linear", "conv1d", "conv2d", "conv3d", "matmul", "bmm")


def not_normalised(model: nn.Module, names: Sequence[str]) -> set[str]:
    """Those of the layers `names` whose output reaches another layer, or leaves the model, without a normalisation.

    Found by following the output through a symbolic trace of the model; where a model cannot be traced (its forward
    pass asks for values), by what is defined behind the layer. The model's modules and parameters stay as they are.
    """
    traced = _traced(model)
    modules = {name: model.get_submodule(name) for name in names}
    bare = set()
    for name, module in modules.items():
        uses = [node for node in traced if node.op == "call_module" and _module(model, node) is module]
        normalised = all(_reaches_norm(model, node) for node in uses) if uses else _norm_is_defined_next(model, name)
        if not normalised:
            bare.add(name)
    return bare


class _Tracer(fx.Tracer):
    """Goes into everything that has children, and calls nothing else."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(True for _ in m.children()) or super().is_leaf_module(m, module_qualified_name)


def _traced(model: nn.Module) -> Iterable[fx.Node]:
    """The operations of a forward pass, in order; none where the model cannot be traced."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            return list(_Tracer().trace(model).nodes)
    except Exception:  # a user's forward pass may raise anything on symbols; nothing is lost by that
        return []


def _module(model: nn.Module, node: fx.Node) -> nn.Module:
    return model.get_submodule(str(node.target))


def _reaches_norm(model: nn.Module, start: fx.Node) -> bool:
    """Whether every way from a node on meets a normalisation before a layer or the model's end."""
    ways, seen = list(start.users), set()
    while ways:
        node = ways.pop()
        if node in seen:
            continue
        seen.add(node)
        name = getattr(node.target, "__name__", str(node.target))
        module = _module(model, node) if node.op == "call_module" else None
        if name in NORM_FUNCTIONS or (module is not None and _is_norm(module)):
            continue
        if node.op == "output" or name in WEIGHTED_FUNCTIONS or (module is not None and _holds_layer(module)):
            return False
        ways += node.users
    return True


def _norm_is_defined_next(model: nn.Module, name: str) -> bool:
    """Whether the next layer or normalisation that the model defines, or each layer's of the same parent, is one."""
    parts = [(n, m) for n, m in model.named_modules() if is_weighted(m) or _is_norm(m)]
    behind = [n for n, _ in parts].index(name) + 1
    if behind < len(parts) and _is_norm(parts[behind][1]):
        return True
    siblings = list(model.get_submodule(name.rpartition(".")[0]).children())
    return 0 < sum(is_weighted(m) for m in siblings) <= sum(_is_norm(m) for m in siblings)


def _is_norm(module: nn.Module) -> bool:
    """Whether a module normalises; one of the user's by its name."""
    return isinstance(module, NORMS) or ("norm" in type(module).__name__.lower() and not _holds_layer(module))


def _holds_layer(module: nn.Module) -> bool:
    return any(is_weighted(m) for m in module.modules())
