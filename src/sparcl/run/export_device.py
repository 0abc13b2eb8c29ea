"""`sparcl export --format device` and `sparcl pack`: what a device goes on from, and what it learns there."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sparcl import outputs, streams
from sparcl.checkpoint import disk, model_file
from sparcl.checkpoint.files import safetensors_parts
from sparcl.checkpoint.store import Store, open_folder
from sparcl.errors import CheckpointError, ConfigError, shown, unknown
from sparcl.learner import Learner
from sparcl.learner.classes import check_names
from sparcl.learner.micro import MICRO_BATCH
from sparcl.methods import METHODS, Method
from sparcl.nn import BFLOAT16, in_halves
from sparcl.nn.graph import graph
from sparcl.run import build, effect
from sparcl.run.experiment import Experiment
from sparcl.run.record import RunDirectory
from sparcl.run.toml import read_toml
from sparcl.sparsity import DDR, DGM, SNIP, SPARSIFIERS, TDM, SparCL, Sparsifier, Static
from sparcl.streams.augment import Transform
from sparcl.streams.task import Name, Samples

SAMPLES = "sparcl samples"
DEVICE_SPARSIFIERS = ("dense", "static", "tdm", "dgm", "ddr", "sparcl")
"""Those that `sparcl-device learn` runs."""
TDM_NUMBERS = ("sparsity", "p_intra", "p_inter", "alpha", "beta", "batches")
DGM_NUMBERS = ("frozen", "interval", "alpha", "beta")
DDR_SETTINGS = ("share", "score", "by_epochs")


def export_device(
    learner: Learner, path: Path, *, transform: Transform, input_shape: Sequence[int], classes: Sequence[Name]
) -> None:
    """Write a Learner as one file for `sparcl-device`, inside a task too; `Learner.load` goes on from it as well.

    Args:
        learner: its model must be of layers that `sparcl.nn.graph` knows.
        path: the file; one that is there is replaced.
        transform: from stored samples to what the network sees.
        input_shape: of one sample.
        classes: names in the order of the logits; a device has them as texts.

    Raises:
        ConfigError: a layer or a setting that a device does not have; a class that is named twice, or another number
            of them than of logits.
        CheckpointError: the file cannot be written.
    """
    if not isinstance(transform, Transform):
        raise ConfigError(f"transform {shown(transform)} is not allowed; use a streams.Transform")
    _check_device(learner, transform)
    if learner.stream is not None:
        raise ConfigError(
            "the learner stands in a stream without borders, and a device learns tasks: `learn` one first"
        )
    if still := [name for name, p in learner.model.named_parameters() if not p.requires_grad]:
        raise ConfigError(f"{still[0]} is frozen, and a device trains every weight: it cannot be exported for one")
    if (buffer := learner.method.buffer) is not None:
        told = (buffer.policy.name, buffer.storage.name, buffer.max_bytes)
        if told != ("reservoir", "raw", None):
            raise ConfigError("a device keeps a plain reservoir of a size, as samples come: this buffer is another")
    figures = {
        "mean": list(transform.normalize.mean),
        "std": list(transform.normalize.std),
        "crop_padding": transform.crop_padding,
        "flip": transform.flip,
    }
    nodes, names = graph(learner.model, input_shape), _named(classes)
    if (logits := nodes[-1].get("weight", [len(names)])[0]) != len(names):
        raise ConfigError(f"the network answers {logits} logits, and classes names {len(names)}: name each, in order")
    _check_called(learner, nodes)
    state = learner.checkpoint_state()
    method, sparsifier = method_figures(learner.method), sparsifier_figures(learner)
    device = {"method": method, "sparsifier": sparsifier, **_stored_as(learner)}
    model_file.write(path, model_file.ModelFile(state, nodes, list(input_shape), names, figures, device))


def _named(classes: Sequence[Name]) -> list[str]:
    """As a device reads them.

    Raises:
        ConfigError: two are the same text, or there are too many.
    """
    names = list(map(str, classes))
    check_names(names, ConfigError)
    return names


def _check_device(learner: Learner, transform: Transform) -> None:
    """Refuse what a device would leave out in silence."""
    for what, part, ours in (
        ("method", learner.method, tuple(METHODS.values())),
        ("sparsifier", learner.sparsifier, (*SPARSIFIERS.values(), TDM, DGM, DDR)),
    ):
        if type(part) not in ours:
            raise ConfigError(f"{what} {type(part).__name__} is your own: a device cannot go on with it")
    if not learner.rate.constant or learner.settings["clip_grad_norm"] is not None:
        raise ConfigError("a device has no learning-rate schedule and no clipping of gradients: it would go on without")
    _check_activations(halves=in_halves(learner.model))
    if MICRO_BATCH in learner.settings:
        raise ConfigError("a device has no micro-batches: make the Learner with a smaller batch size")
    if transform.augment is not None:
        raise ConfigError("the augmentation is a function of your own: a device cannot go on with it")


def _check_called(learner: Learner, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a pruned layer that is in no list of layers: its mask moves, and draws numbers as the others do."""
    called = {node["name"] for node in nodes}
    if idle := [layer.name for layer in learner.sparsifier.layers if layer.name not in called]:
        raise ConfigError(
            f"layer {idle[0]} is pruned, and the network's forward never calls it: a device does not have it; make the"
            " Learner without it in `prunable`"
        )


def _check_activations(*, halves: bool) -> None:
    if halves:
        raise ConfigError("a device keeps activations as float32 alone, and these are bfloat16: train with those")


def method_figures(method: Method) -> dict[str, Any]:
    """The method's name and numbers, defaults filled in."""
    figures: dict[str, Any] = {"name": method.name, "single_head": method.single_head}
    if method.buffer is not None:
        figures["buffer_size"] = method.buffer.capacity
    return {**figures, **{name: float(vars(method)[name]) for name in ("alpha", "beta") if name in vars(method)}}


def sparsifier_figures(learner: Learner) -> dict[str, Any]:
    """What a device needs of the sparsifier beside its state; of one that it does not run, the name alone.

    `layers`: the prunable layers in order, each with its active units (`target`, 0 where they never change) and whether
    its gradients are `scaled` (no norm follows). `tdm`, `dgm`, `ddr`: the parts' numbers, None for a part that is not
    there; `ranking`: of the first two.
    """
    sparsifier = learner.sparsifier
    snipped = type(sparsifier) is SNIP and learner.learned > 0  # the mask is there, and no longer moves
    if type(sparsifier) not in (Sparsifier, Static, TDM, DGM, DDR, SparCL) and not snipped:
        return {"name": type(sparsifier).__name__ if sparsifier.name in DEVICE_SPARSIFIERS else sparsifier.name}
    parts = (sparsifier.tdm, sparsifier.dgm, sparsifier.ddr) if isinstance(sparsifier, SparCL) else (sparsifier,)
    static = next((part for part in parts if isinstance(part, Static)), None)
    tdm = next((part for part in parts if isinstance(part, TDM)), None)
    dgm = next((part for part in parts if isinstance(part, DGM)), None)
    ddr = next((part for part in parts if isinstance(part, DDR)), None)
    targets = [0] * len(sparsifier.layers) if static is None else static.target
    scaled = set() if static is None else static.scaled
    ranked = next((part.ranking for part in (tdm, dgm) if part is not None), None)
    return {
        "name": "static" if snipped else sparsifier.name,
        "block": sparsifier.pattern.block,
        "ranking": ranked,
        "layers": [
            {"name": layer.name, "target": target, "scaled": layer.name in scaled}
            for layer, target in zip(sparsifier.layers, targets, strict=True)
        ],
        "tdm": tdm and {name: getattr(tdm, name) for name in TDM_NUMBERS},
        "dgm": dgm and {name: getattr(dgm, name) for name in DGM_NUMBERS},
        "ddr": ddr and {name: getattr(ddr, name) for name in DDR_SETTINGS},
    }


def _stored_as(learner: Learner) -> dict[str, str]:
    """The type of samples as stored, where a task has shown it."""
    if not learner.tasks:
        return {}
    return {"samples": str(learner.tasks[-1].train.inputs.dtype).removeprefix("torch.")}


def import_device(path: Path, **options: Any) -> Learner:
    """The Learner in a device's file; `options` as of `Learner.load`, which this is."""
    return Learner.load(path, **options)


def export_run(run: Path, path: Path) -> None:
    """Write the last state of a run directory, with its stream's transform and classes, as one file for a device.

    Raises:
        ConfigError: a layer that a device cannot compute.
        CheckpointError: no checkpoint, or the file cannot be written.
        DataError: the run's data, whose transform is asked for, is not there.
    """
    directory = RunDirectory(run)
    experiment = _experiment(directory.config)
    again = (
        f"a device goes on from one; run it again: sparcl run --config {shlex.quote(str(directory.config))} --out DIR"
    )
    if Store(directory.checkpoints).empty:
        if directory.finished:
            raise CheckpointError(f"{run} has no checkpoint any more, and {again}")
        raise CheckpointError(f"{run} has no checkpoint yet: go on with sparcl run --resume")
    try:
        state = open_folder(directory.checkpoints)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {again}") from None
    state.pop("run", None)
    stream = build.stream(experiment)
    learner = build.learner(experiment, stream)
    learner.restore(state)
    shape, names = stream.input_shape, stream.class_names
    export_device(learner, path, transform=stream.tasks[0].transform, input_shape=shape, classes=names)


def export_fresh(config: Path, path: Path) -> None:
    """Write the untrained Learner of a TOML file of settings (of `sparcl run --config`) as one file for a device.

    Raises:
        ConfigError: a setting that is not allowed, or a layer that a device cannot compute.
        CheckpointError: the file cannot be written.
        DataError: the stream's data, whose shape and transform are asked for, is not there.
    """
    experiment = _experiment(config)
    effect.check(experiment)
    stream = build.stream(experiment)
    learner = build.learner(experiment, stream)
    shape, names = stream.input_shape, stream.class_names
    export_device(learner, path, transform=stream.tasks[0].transform, input_shape=shape, classes=names)


def _experiment(config: Path) -> Experiment:
    given = Experiment.from_dict(read_toml(config), str(config)).resolve()
    _check_activations(halves=given.activations == BFLOAT16)
    return dataclasses.replace(given, backend="reference", device="cpu", layer_choice={})  # a state is every backend's


def pack(samples: Samples, classes: Sequence[Name], path: Path) -> None:
    """Write samples as one file for `sparcl-device`: `inputs` as stored, `labels` int64, and the names of the classes.

    Raises:
        CheckpointError: the file cannot be written.
        ConfigError: inputs that are neither uint8 nor float32; a class that is named twice, or a label that has none.
    """
    if samples.inputs.dtype not in (torch.uint8, torch.float32):
        raise ConfigError(f"samples of {samples.inputs.dtype} cannot be packed; allowed: uint8 and float32")
    names = _named(classes)
    if len(samples.labels) and not 0 <= (least := int(samples.labels.min())) <= int(samples.labels.max()) < len(names):
        raise ConfigError(f"labels from {least} to {int(samples.labels.max())} do not point into {len(names)} classes")
    tensors = {"inputs": samples.inputs[:].contiguous(), "labels": samples.labels.contiguous()}
    first, *data = safetensors_parts(tensors)
    header = {"__metadata__": {"format": SAMPLES, "version": "1", "classes": json.dumps(names)}}
    text = json.dumps({**header, **json.loads(bytes(first)[8:])}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    try:
        disk.write_output(path, [len(text).to_bytes(8, "little") + text, *data])
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from None


def pack_stream(name: str, path: Path, *, task: int | None, split: str, data: str | None, **options: Any) -> int:
    """Pack the samples of a stream's task (from 1), or of all of them; how many there are.

    `options` as of `streams.load`: which classes are of which task, and the size of images.

    Raises:
        ConfigError: an unknown stream, task or split, or a file that is a run's own or the data's.
        DataError: the data is not there.
    """
    outputs.check(path, *([] if data is None else [Path(data)]))
    if split not in ("train", "test"):
        raise ConfigError(unknown("split", split, ("train", "test")))
    if task is None and name == "folder" and options.get("classes_per_task") is None:
        options["classes_per_task"] = 1  # all of it is packed: any number of classes will do
    stream = streams.load(name, None if data is None else Path(data), **options)
    if task is not None and not 1 <= task <= len(stream):
        raise ConfigError(f"task {task} is not there; {name} has the tasks 1 to {len(stream)}")
    source = stream.merged()[0] if task is None else stream[task - 1]
    samples = source.train if split == "train" else source.test
    if samples is None:
        raise ConfigError(f"{name} has no test samples here; allowed: train")
    labels = torch.searchsorted(torch.tensor(sorted(source.classes)), samples.labels)  # into the names that are there
    pack(Samples(samples.inputs, labels), [stream.class_names[c] for c in sorted(source.classes)], path)
    return len(labels)
