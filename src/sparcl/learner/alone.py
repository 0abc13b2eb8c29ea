"""One sample has no batch statistics: where a BatchNorm trains, steps of one sample are refused, and it is named.

Elsewhere a batch of one sample, and a task of one, are as good as any.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparcl.errors import ConfigError, DataError
from sparcl.streams.task import Task


def first_norm(model: nn.Module, frozen: Collection[nn.Module] = ()) -> str | None:
    """Name and kind of the model's first BatchNorm that takes its statistics from the batch; None: it has none.

    A frozen one does not, nor one without weights inside what is `frozen`.
    """
    still = {id(module) for part in frozen for module in part.modules()}
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if (
            isinstance(module, _BatchNorm)
            and id(module) not in still
            and (not own or any(p.requires_grad for p in own))
        ):
            known = next(kind for kind in type(module).__mro__ if kind.__module__.startswith("torch."))
            return f"{name or 'the model'} ({known.__name__})"  # as the user wrote it, on either backend
    return None


def check_batches(
    model: nn.Module,
    batch_size: int,
    replay_batch_size: int | None,
    micro_batch: int | None,
    frozen: Collection[nn.Module] = (),
) -> None:
    """Raise ConfigError if steps of one sample would go through a BatchNorm."""
    sizes = {"batch size": batch_size, "replay batch size": replay_batch_size, "micro-batch": micro_batch}
    for label, value in sizes.items():
        if value == 1 and (norm := first_norm(model, frozen)) is not None:
            raise ConfigError(
                f"{label} 1 is not allowed with layer {norm}: batch statistics need 2 samples or more; use 2 or more,"
                " or a model without BatchNorm"
            )


def check_task(model: nn.Module, task: Task, frozen: Collection[nn.Module] = ()) -> None:
    """Raise DataError if a task of one sample would go through a BatchNorm."""
    if len(task.train) == 1 and (norm := first_norm(model, frozen)) is not None:
        raise DataError(
            f"task {task.index + 1} has 1 training sample: layer {norm} needs 2 or more for its batch statistics"
        )
