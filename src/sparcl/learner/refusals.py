"""What a Learner refuses before any work: settings, an optimizer, a task, a model that does not fit it.

Legend: N batch, C classes of the whole stream.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparcl.errors import ConfigError, DataWarning, one_line, shown
from sparcl.folders import folder_at
from sparcl.methods import METHODS
from sparcl.methods.method import Method, RehearsalMethod
from sparcl.methods.respond import answers_by_classifier, evaluating
from sparcl.nn import in_halves
from sparcl.nn.layers import is_weighted
from sparcl.sparsity.sparsifier import Sparsifier
from sparcl.streams.augment import channels_hint
from sparcl.streams.task import Task
from sparcl.whole import is_whole

MOST_SEED = 2**63 - 1

WHOLE = 16
"""Samples that a batch is a multiple of where its activations are halves (csrc/engine/plan.h)."""

KINDS: dict[str, tuple[type, str]] = {
    "model": (nn.Module, "sparcl.nn.resnet18(10)"),
    "method": (Method, "sparcl.methods.DERpp(200)"),
    "sparsifier": (Sparsifier, "sparcl.SparCL(0.9)"),
}
"""What a Learner is made of, and an example of each."""


def check_parts(model: object, method: object, sparsifier: object, optimizer: object, observers: object) -> None:
    """Raise ConfigError unless each is an object of its kind, not a name or a class, and the model can be trained."""
    check_kinds(model=model, method=method, sparsifier=sparsifier)
    if optimizer is not None and not callable(optimizer):
        raise ConfigError(
            f"optimizer {_told(optimizer)} is not allowed; use a function that makes one of parameters, such as"
            " lambda p: torch.optim.SGD(p, lr=0.03)"
        )
    if not isinstance(observers, Iterable) or not all(callable(one) for one in observers):
        raise ConfigError(f"observers {_told(observers)} are not allowed; use a list of functions of event and figures")
    assert isinstance(model, nn.Module)
    _check_model(model)


def check_kinds(**parts: object) -> None:
    """Raise ConfigError unless each is an object of its kind, not a name or a class."""
    for label, value in parts.items():
        kind, example = KINDS[label]
        if not isinstance(value, kind):
            raise ConfigError(f"{label} {_told(value)} is not allowed; use an object such as {example}")


def _told(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else shown(value)


def check_settings(batch_size: int, replay_batch_size: int | None, seed: int) -> tuple[int, int, int]:
    """Raise ConfigError unless all are within their ranges; them, as Python's own numbers."""
    replay = batch_size if replay_batch_size is None else replay_batch_size
    for label, size in (("batch size", batch_size), ("replay batch size", replay)):
        if not is_whole(size):
            raise ConfigError(f"{label} {size!r:.40} is not allowed; use 1 or more (2 or more with BatchNorm)")
    if not is_whole(seed, 0, MOST_SEED):
        raise ConfigError(f"seed {seed!r:.40} is not allowed; use a whole number from 0 to {MOST_SEED}")
    return int(batch_size), int(replay), int(seed)


def check_activations(model: nn.Module, sizes: Sequence[int], saves_otherwise: str | None) -> None:
    """Refuse activations in bfloat16 that would be none (ConfigError).

    Args:
        sizes: of the batches that pass.
        saves_otherwise: what else spares the activations, if anything does.
    """
    if not in_halves(model):
        return
    if (size := next((size for size in sizes if size % WHOLE), None)) is not None:
        raise ConfigError(
            f"activations bfloat16 are of batches of a multiple of {WHOLE} samples, and the batch size or the replay"
            f" batch size is {size}: use another, or activations float32"
        )
    if saves_otherwise is not None:
        raise ConfigError(f"activations bfloat16 do not go with {saves_otherwise}: leave one of them out")


def replays(method: Method) -> bool:
    """Whether samples may be drawn from a buffer; a method of the user's own may have one that we do not know."""
    return method.buffer is not None or not type(method).__module__.startswith("sparcl.")


def check_replay(replay_batch_size: int | None, method: Method) -> None:
    """Raise ConfigError if a replay batch size is given and nothing is replayed."""
    if replay_batch_size is not None and not replays(method):
        with_one = ", ".join(name for name, kind in METHODS.items() if issubclass(kind, RehearsalMethod))
        raise ConfigError(
            f"replay batch size {replay_batch_size} has no effect: method {method.name} has no buffer; those with one:"
            f" {with_one}"
        )


def check_last(drop_last: bool | None, usual: bool) -> bool:
    """Whether an epoch's last partial batch is left out; ConfigError where that is neither true nor false."""
    if drop_last is None:
        return usual
    if not isinstance(drop_last, bool | np.bool_):
        raise ConfigError(f"drop_last {drop_last!r:.40} is not allowed; use True or False, or leave it out")
    return bool(drop_last)


def check_checkpoints(directory: object, every: object) -> None:
    """Raise ConfigError unless the directory is a path, and is there where an interval is given."""
    if directory is not None:
        folder_at(directory, "checkpoint dir")
    elif every is not None:
        raise ConfigError(
            f"checkpoint every {every!r:.40} has no effect without checkpoint_dir, the folder to write to"
        )


def device_of(name: str | torch.device) -> torch.device:
    """A device of this machine.

    Raises:
        ConfigError: there is no such one.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise TypeError("nothing is computed on it")
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(
            f"device {name!r:.40} is not allowed; use cpu or one that PyTorch has: {one_line(error)}"
        ) from error
    return device


def _check_model(model: nn.Module) -> None:
    """Raise ConfigError if there is nothing to train, or not yet."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if lazy := [name for name, tensor in tensors if is_lazy(tensor)]:
        raise ConfigError(
            f"{lazy[0]} of the model has no shape yet (a lazy module): run one batch through the model first"
        )
    if unset := [name for name, tensor in tensors if tensor.is_meta]:
        raise ConfigError(f"{unset[0]} of the model holds no numbers (device meta): make the model on one with memory")
    if not any(True for _ in model.parameters()):
        raise ConfigError("the model has no parameters: there is nothing to train")


def check_turn(task: Task, learned: int) -> None:
    """Raise ConfigError unless the task is the next one."""
    if task.index != learned:
        raise ConfigError(f"task {task.index + 1} was given, but task {learned + 1} is the next to learn")


@torch.no_grad()
def check_fit(
    model: nn.Module, method: Method, task: Task, device: torch.device, batch_size: int, *, grows: bool = False
) -> int:
    """Let the model answer a first batch of the task, evaluating, and look whether it can be trained on that.

    A task without classes stands for samples of a stream: for their columns is not looked.

    Returns:
        C, the columns of its answer.

    Raises:
        ConfigError: the transform or the model does not take the task's inputs, the answer is not logits [N, C] with
            a column for each of the task's classes, or the method does not find the model's classifier.
    """
    raw = task.train.inputs[:batch_size].to(device)
    inputs = task.transform.train(raw, torch.Generator())
    with evaluating(model):
        try:
            logits = model(inputs)
        except (RuntimeError, ValueError, TypeError, IndexError, ConfigError) as error:
            given = f"{str(inputs.dtype).removeprefix('torch.')} {list(inputs.shape)}"
            hint = channels_hint(inputs)
            raise ConfigError(f"the model does not take the task's inputs, {given}: {one_line(error)}{hint}") from error
    logits = check_logits(logits, len(inputs), "the model answers")
    if task.classes:
        check_columns(task, logits.shape[1])
    remembered = None if method.buffer is None else method.buffer.logits
    if remembered is not None and remembered.shape[1] != logits.shape[1] and not grows:
        raise ConfigError(
            f"the model answers with {logits.shape[1]} logits, but the buffer remembers {remembered.shape[1]} each"
        )
    if method.uses_classifier and not answers_by_classifier(model, inputs):
        raise ConfigError(
            f"method {method.name} takes the last convolution or linear layer for the one that makes the logits, and"
            " here it is another: define that one last in the model"
        )
    return logits.shape[1]


@contextlib.contextmanager
def layers_called(model: nn.Module) -> Iterator[list[str]]:
    """A list to which each forward pass in here adds the convolutions and linear layers that it calls, by name."""
    called: list[str] = []
    layers = [(name, module) for name, module in model.named_modules() if is_weighted(module)]
    hooks = [module.register_forward_hook(lambda *_, name=name: called.append(name)) for name, module in layers]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()


def warn_of_pruned_ends(called: Sequence[str], sparsifier: Sparsifier) -> None:
    """Warn (DataWarning) if, by default, the layer that is called first or last is pruned.

    The first and the last layer stay dense, by the order in which the model defines them; `forward` may call others.
    """
    pruned = {layer.name for layer in sparsifier.layers}
    ends = [*called[:1], *called[-1:]]
    if (end := next((name for name in reversed(ends) if name in pruned), None)) is not None:
        does = "makes the logits" if end == ends[-1] else "meets the inputs first"
        others = list(dict.fromkeys(name for name in called if name not in ends))
        text = f"layer {end} {does} and is pruned, as the model defines it neither first nor last; name what to prune"
        warnings.warn(f"{text}, prunable=[...], of: {', '.join(others):.80}", DataWarning, stacklevel=6)


def check_logits(answer: object, samples: int, what: str) -> Tensor:
    """An answer to so many samples; ConfigError unless it is logits [N, C]."""
    if not isinstance(answer, Tensor) or answer.dim() != 2 or len(answer) != samples:
        given = f"shape {list(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        raise ConfigError(f"{what} a batch of {samples} with {given}; logits [N, C] are needed")
    return answer


TRAINING = "the model, while it trains, answers"
"""Some answer then with more, as Inception with its auxiliary classifiers, and evaluating with logits alone."""


@contextlib.contextmanager
def training_answers(model: nn.Module) -> Iterator[None]:
    """In here a training model that answers with something else than logits is refused (ConfigError)."""

    def look(module: nn.Module, inputs: tuple[Tensor, ...], answer: object) -> None:
        if module.training:
            check_logits(answer, len(inputs[0]), TRAINING)

    hook = model.register_forward_hook(look)
    try:
        yield
    finally:
        hook.remove()


def check_columns(task: Task, columns: int) -> None:
    """Raise ConfigError unless there is a logit for each of the task's classes."""
    if max(task.classes) >= columns:
        raise ConfigError(
            f"the model answers with {columns} logits, but task {task.index + 1} has class {max(task.classes)}:"
            " one for each class of the whole stream is needed"
        )
