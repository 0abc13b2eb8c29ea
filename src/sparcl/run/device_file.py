"""A device's file on the desk, as it is: its answers (`sparcl predict`, `export`), and what `sparcl report` says."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sparcl import methods
from sparcl.checkpoint import checks, model_file
from sparcl.errors import CheckpointError, ConfigError
from sparcl.methods.method import Method
from sparcl.nn import from_graph
from sparcl.nn.layers import AVERAGE
from sparcl.report import neutral
from sparcl.report.write import WIDE
from sparcl.run.answering import Answering, described

FORMATS = ("table", "markdown", "csv")
COLUMNS = {
    "file": "file",
    "method": "method",
    "sparsity": "sparsity",
    "weights": "weights",
    "classes": "classes",
    "tasks": "tasks",
    "on_device": "of them on the device",
    "steps": "steps",
    "buffer_samples": "buffer, samples",
    "buffer_bytes": "buffer, bytes",
    "state": "state",
}
"""Of the report, as CSV names them and as people read them."""


def answering(place: Path) -> Answering:
    """A run directory or a device's file, opened for its answers.

    Raises:
        CheckpointError: it is neither, or damaged.
    """
    return _of_file(place) if os.path.isfile(place) else Answering.of(place)


def _of_file(path: Path) -> Answering:
    try:
        model = model_file.read(path)
    except CheckpointError as error:
        if "is no sparcl model" not in str(error):
            raise
        why = str(error).rpartition(": ")[2]
        raise CheckpointError(
            f"{path} is no run directory and no device's file, or not all of one ({why}): name one of them first"
        ) from None
    with checks.refusing(f"{path}: what it says of itself"):
        known = described(_data(model), path)
        kind = _method(model)
    if kind.answers_need is not None or "class-il" not in kind.scenarios:
        raise CheckpointError(
            f"method {kind.name} answers with more than its network, which a device's file does not hold apart:"
            " use Learner.load"
        )
    with checks.refusing(f"{path}: its weights"):
        weights, averages = _that_answer(model.state)
        layers = {
            name: (averages.get(f"{name}.weight", layer["values"]), layer["index"])
            for name, layer in model.state["layers"].items()
        }
        network = from_graph.network(model.graph, _called(model, weights), layers)
    return Answering(path, kind, None, None, network, {}, **known)


def _called(model: model_file.ModelFile, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without those of layers that the network has and its `forward` never calls: they are in no list of layers."""
    called = {node["name"] for node in model.graph}
    return {name: tensor for name, tensor in weights.items() if name.rpartition(".")[0] in called}


def _that_answer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Dense weights and statistics that answer, and the averages of all weights: each one's takes its place."""
    weights = dict(state["model"])
    if state["settings"].get("average") is None:
        return weights, {}
    moved = state["optimizer"]["state"]
    averages: dict[str, Tensor] = {name: kept[AVERAGE] for name, kept in moved.items() if AVERAGE in kept}
    averages |= state["learner"]["average"]
    return weights | {name: averages[name] for name in weights.keys() & averages.keys()}, averages


def _method(model: model_file.ModelFile) -> type[Method]:
    name = model.device["method"]["name"]
    if not isinstance(name, str) or name not in methods.METHODS:
        raise CheckpointError(f"the method {name!r:.40} of the file is not known")
    return methods.find(name)


def _data(model: model_file.ModelFile) -> dict[str, Any]:
    """As result.json describes a run's data."""
    names = model.classes
    tasks = [list(columns) for columns in model.state["learner"]["classes"]["of_tasks"]]
    return {
        "class_names": names,
        "tasks": tasks or [list(range(len(names)))],
        "input_shape": model.input_shape,
        "input_dtype": _dtype(model),
        "mean": model.transform["mean"],
        "std": model.transform["std"],
    }


def _dtype(model: model_file.ModelFile) -> str:
    """Of samples as stored: as the file says or its buffer shows; images are bytes."""
    buffer = model.state["learner"]["method"].get("buffer") or {}
    said = model.device.get("samples")
    if said is None and isinstance(inputs := buffer.get("inputs"), Tensor):
        said = str(inputs.dtype).removeprefix("torch.")
    return str(said or ("uint8" if len(model.input_shape) == 3 else "float32"))


# --- what sparcl report says ----------------------------------------------------------------------------------------


def report(files: Sequence[Path], form: str) -> str:
    """What is in devices' files, a row each, as text.

    Raises:
        ConfigError: a format that shows runs only.
        CheckpointError: a file is missing, damaged or no sparcl model.
    """
    if form not in FORMATS:
        raise ConfigError(f"format {form!r} shows runs; of a device's file there are: {', '.join(FORMATS)}")
    rows = [_row(path) for path in files]
    if form == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([[neutral.csv_cell(str(cell)) for cell in row] for row in rows])
        return text.getvalue()
    if form == "markdown":
        lines = [list(COLUMNS.values()), ["---"] * len(COLUMNS), *([neutral.markdown(str(c)) for c in r] for r in rows)]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)
    table = Table(*COLUMNS.values(), title="in devices' files")
    for row in rows:
        table.add_row(*(neutral.terminal(str(cell)) for cell in row))
    console = Console(width=WIDE, color_system=None)
    with console.capture() as capture:
        console.print(table, markup=False)
    return capture.get()


def _row(path: Path) -> list[Any]:
    model = model_file.read(path)
    with checks.refusing(f"{path}: what it says of itself"):
        learner, here = model.state["learner"], model.device.get("tasks", [])
        shapes = {node["name"]: node["weight"] for node in model.graph if node["op"] == "convolution"}
        active = sum(len(layer["values"]) for layer in model.state["layers"].values())
        prunable = sum(int(torch.Size(shapes[name]).numel()) for name in model.state["layers"])
        parameters = [v for name, v in model.state["model"].items() if name.endswith((".weight", ".bias"))]
        buffer = learner["method"].get("buffer") or {}
        held = [value for value in buffer.values() if isinstance(value, Tensor)]
        return [
            path,
            _method(model).name,
            f"{1 - active / prunable:.4f}" if prunable else "dense",
            active + sum(v.numel() for v in parameters),
            len(model.classes),
            checks.integer(learner["learned"], "learned"),
            len(here),
            checks.integer(learner["steps"], "steps"),
            len(buffer["labels"]) if held else 0,
            sum(value.numel() * value.element_size() for value in held),
            "between tasks" if learner["position"] is None else "inside a task: sparcl-device learn goes on",
        ]
