"""`sparcl export`: a finished run's answers for programs without this package, raw samples in, logits out."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparcl import outputs, regular
from sparcl.checkpoint import disk
from sparcl.checkpoint.files import safetensors_parts
from sparcl.errors import CheckpointError, ConfigError, SparclError, one_line, out_of_memory, unknown
from sparcl.run import plain_code
from sparcl.run.answering import Answering
from sparcl.run.device_file import answering as opened
from sparcl.run.export_device import export_fresh, export_run

TOLERANCE = 1e-4
"""How far ONNX Runtime's logits may lie from PyTorch's, of the largest of them or of 1."""


class Exported(nn.Module):
    """Samples as stored, [N, ...], uint8 where the run's are -> logits [N, C] of the columns asked for.

    Args:
        answering: the run.
        task: numbered from 1; None where all classes are asked for.
    """

    scale: Tensor
    shift: Tensor
    columns: Tensor

    def __init__(self, answering: Answering, task: int | None) -> None:
        super().__init__()
        columns = answering.columns(task) or tuple(range(len(answering.names)))
        index = None if task is None else task - 1
        self.network = answering.method.as_network(answering.network, answering.state, index)
        self.names = [answering.names[k] for k in columns]
        std = torch.tensor(answering.normalize.std, dtype=torch.float64)
        mean = torch.tensor(answering.normalize.mean, dtype=torch.float64)
        axes = (-1,) + (1,) * (len(answering.input_shape) - 1)
        self.register_buffer("scale", (1 / (std * (255 if answering.pixels else 1))).float().view(axes))
        self.register_buffer("shift", (mean / std).float().view(axes))
        self.register_buffer("columns", torch.tensor(columns))
        self.every = columns == tuple(range(len(answering.names)))

    def forward(self, samples: Tensor) -> Tensor:
        logits: Tensor = self.network(samples.to(torch.float32) * self.scale - self.shift)
        return logits if self.every else logits.index_select(1, self.columns)


def execute(run: Path, format: str, out: Path, task: int | None = None) -> list[Path]:
    """Write a run's answers in a format, and return the files.

    Raises:
        SparclError: no such run, an unknown format, a file that cannot be written or is a run's own, or a package that
            is missing.
    """
    if format not in FORMATS:
        raise ConfigError(unknown("format", format, FORMATS))
    outputs.check(out, run)
    return FORMATS[format](run, out, task)


def to_torch(run: Path, out: Path, task: int | None) -> list[Path]:
    """A state dict as safetensors, and beside it a module that loads it with torch and safetensors alone."""
    _check_suffix(out, SUFFIXES["torch"])
    answering, exported = _opened(run, task)
    code = out.with_suffix(".py")
    if code.exists() and not _is_ours(code):
        raise ConfigError(f"{code} would hold the code that loads {out.name}, but is there already: move it away")
    state = {name: tensor.contiguous() for name, tensor in plain_code.state(exported.network).items()}
    _write(out, safetensors_parts(state))
    _write(code, [plain_code.module(answering, exported.network, exported.names, exported.columns.tolist()).encode()])
    return [out, code]


def to_onnx(run: Path, out: Path, task: int | None) -> list[Path]:
    """An ONNX file, the normalisation inside, whose answers ONNX Runtime gives as PyTorch does."""
    _check_suffix(out, SUFFIXES["onnx"])
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise SparclError(f'export to ONNX needs {name}: pip install "sparcl-edge[onnx]"')
    answering, exported = _opened(run, task)
    content = _as_onnx(answering, exported)
    _check_onnx(content, answering, exported)
    _write(out, [content])
    return [out]


def to_device(run: Path, out: Path, task: int | None) -> list[Path]:
    """One file that sparcl-device predicts with and goes on learning from."""
    if task is not None:
        raise ConfigError("format device holds the whole network: leave --task out")
    file = os.path.isfile(run)
    if not file and not os.path.isdir(run):
        raise ConfigError(f"{run} does not exist: name a run directory, or a TOML file of settings")
    if file and run.suffix != ".toml":
        raise ConfigError(f"{run} is a device's file already, or no run directory: copy it, or name a run")
    (export_fresh if file else export_run)(run, out)
    return [out]


FORMATS: dict[str, Callable[[Path, Path, int | None], list[Path]]] = {
    "torch": to_torch,
    "onnx": to_onnx,
    "device": to_device,
}
"""By name: (run directory, file to write, task from 1 or None) -> the files written."""

SUFFIXES = {"torch": ".safetensors", "onnx": ".onnx", "device": ".sparcl"}
"""What a format's file must end in; of a device's that is the custom alone."""


def _opened(run: Path, task: int | None) -> tuple[Answering, Exported]:
    answering = opened(run)
    answering.check_answers()
    return answering, Exported(answering, task).eval()


def _samples(answering: Answering, count: int) -> Tensor:
    """Noise of the run's kind, the same each time."""
    shape, generator = (count, *answering.input_shape), torch.Generator().manual_seed(count)
    if answering.pixels:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return torch.randn(shape, generator=generator)


def _as_onnx(answering: Answering, exported: Exported) -> bytes:
    import onnx

    try:
        with _quiet():
            program: Any = torch.onnx.export(
                exported,
                (_samples(answering, 2),),
                input_names=["samples"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                dynamo=True,
                verbose=False,
            )
        model = program.model_proto
    except Exception as error:  # an exporter may raise anything; the run is none the worse
        if out_of_memory(error):
            raise
        raise SparclError(f"PyTorch cannot export this network to ONNX: {one_line(error)}") from error
    told = {"class_names": json.dumps(exported.names), "method": answering.method.name}
    onnx.helper.set_model_props(model, {**told, "network": str(answering.model or "a device's")})
    content: bytes = model.SerializeToString()
    return content


@torch.no_grad()
def _check_onnx(content: bytes, answering: Answering, exported: Exported) -> None:
    """Refuse a file whose answers are not PyTorch's."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for count in (1, 5):
        samples = _samples(answering, count)
        (given,) = session.run(None, {"samples": samples.numpy()})
        expected, logits = exported(samples), torch.from_numpy(given)
        most = max(1.0, float(expected[expected.isfinite()].abs().max()))
        if expected.shape != logits.shape or not torch.allclose(logits, expected, rtol=0, atol=TOLERANCE * most):
            raise SparclError("ONNX Runtime answers otherwise than PyTorch; nothing was written: please report it")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's notes on packages that this one has no use for stay out of the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def _check_suffix(out: Path, suffix: str) -> None:
    if out.suffix != suffix:
        meant = next((name for name, end in SUFFIXES.items() if end == out.suffix), None)
        hint = "" if meant is None else f"; {out.suffix} is of --format {meant}"
        raise ConfigError(f"--out {out} must end in {suffix}{hint}")
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; name a file with --out")


def _is_ours(code: Path) -> bool:
    try:
        return regular.read(code, 1 << 20).startswith(plain_code.FIRST.encode())
    except OSError:
        return False


def _write(out: Path, parts: Iterator[disk.Bytes] | Sequence[bytes]) -> None:
    try:
        disk.write_output(out, parts)
    except (OSError, CheckpointError) as error:
        raise ConfigError(f"{out} cannot be written: {getattr(error, 'strerror', None) or error}") from None
