"""`sparcl predict`: what a finished run answers to files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from sparcl import regular
from sparcl.errors import ConfigError, DataError, one_line, out_of_memory, unknown
from sparcl.report import neutral
from sparcl.run.answering import Answering
from sparcl.run.device_file import answering as opened
from sparcl.streams import images
from sparcl.streams.augment import channels_hint
from sparcl.streams.pixels import as_learned

FORMATS = ("table", "csv", "json")
MAX_FILE = 4 << 30
AT_ONCE = 256
GREY = (299, 587, 114)
"""Weights of red, green and blue in a grey pixel, in thousandths (ITU-R BT.601)."""


@dataclass(frozen=True)
class Answer:
    """What was answered to one sample.

    Attributes:
        file: the sample's.
        sample: its number in an array, from 0; None for an image.
        best: names and probabilities, the most probable first.
    """

    file: str
    sample: int | None
    best: tuple[tuple[str, float], ...]


def execute(
    run: Path,
    files: Sequence[Path],
    format: str,
    task: int | None,
    top: int,
    console: Console,
    note: Callable[[str], None],
) -> None:
    """Answer, and print the answers; `note` is told what was changed of the inputs.

    Raises:
        SparclError: no such run, a file that is no sample of it, or an option that is not allowed.
    """
    if format not in FORMATS:
        raise ConfigError(unknown("format", format, FORMATS))
    answering = opened(run)
    answering.check_answers()
    classes = len(answering.columns(task) or answering.names)
    if not 1 <= top <= classes:
        raise ConfigError(f"top {top} is not allowed; use 1 to {classes}, the number of classes")
    answers = answer(answering, files, task, top, note)
    if format == "table":
        console.print(table(answers, top))
    else:
        print({"csv": as_csv, "json": as_json}[format](answers), end="")


def answer(
    answering: Answering, files: Sequence[Path], task: int | None, top: int, note: Callable[[str], None]
) -> list[Answer]:
    """Answers to every sample in the files, in order.

    Raises:
        DataError: a file is missing, or not a sample of the run.
    """
    answers: list[Answer] = []
    resized: list[str] = []
    samples = _samples(answering, files, resized.append)
    while some := list(islice(samples, AT_ONCE)):
        predicted = answering.predict(_together([sample for _, _, sample in some]), task)
        predicted.check([_called(file, number) for file, number, _ in some].__getitem__)
        best = predicted.probabilities.topk(top, dim=1)
        for (file, number, _), values, columns in zip(some, best.values.tolist(), best.indices.tolist(), strict=True):
            named = tuple((str(predicted.names[k]), p) for k, p in zip(columns, values, strict=True))
            answers.append(Answer(str(file), number, named))
    if resized:
        size = "×".join(map(str, answering.input_shape[:0:-1]))
        note(f"{len(resized)} image(s) were resized to {size}, the run's own size; the first is {resized[0]}")
    return answers


def _called(file: Path | str, sample: int | None) -> str:
    return str(file) if sample is None else f"{file}[{sample}]"


def _together(samples: list[Tensor]) -> Tensor:
    """Samples [N, ...]: where some pixels are whole and others floating, all of them floating, from 0 to 1."""
    if len({sample.dtype for sample in samples}) > 1:
        samples = [sample / 255 if sample.dtype == torch.uint8 else sample for sample in samples]
    return torch.stack(samples)


def _samples(
    answering: Answering, files: Sequence[Path], resized: Callable[[str], None]
) -> Iterator[tuple[Path, int | None, Tensor]]:
    for file in files:
        try:
            content = regular.read(file, MAX_FILE)
        except FileNotFoundError:
            raise DataError(f"{file} does not exist") from None
        except OSError as error:
            hint = "it is a folder: name files" if file.is_dir() else error.strerror
            raise DataError(f"{file} cannot be read: {hint}") from None
        if file.suffix.lower() == ".npy":
            for i, sample in enumerate(array(answering, content, str(file))):
                yield file, i, sample
        else:
            yield file, None, image(answering, content, str(file), resized)


def image(answering: Answering, content: bytes, name: str, resized: Callable[[str], None]) -> Tensor:
    """An image file as a sample of the run, uint8 [C, H, W]: resized where it is of another size.

    Raises:
        DataError: it is none, or the run's samples are no images.
    """
    shape = answering.input_shape
    if len(shape) != 3 or shape[0] not in (1, 3) or not answering.pixels:
        raise DataError(f"{name}: the samples of this run are no images but of shape {list(shape)}: give .npy files")
    if not images.is_image(name):
        raise DataError(f"{name} is of no known kind: allowed are {', '.join(images.IMAGE_SUFFIXES)} and .npy")
    rgb = images.decode(content, name, (shape[1], shape[2]), resized=lambda: resized(name))
    if shape[0] == 1:
        grey = (rgb.astype(np.uint32) @ np.array(GREY, dtype=np.uint32) + 500) // 1000
        rgb = grey.astype(np.uint8)[:, :, None]
    return torch.from_numpy(rgb.transpose(2, 0, 1).copy())


def array(answering: Answering, content: bytes, name: str) -> Tensor:
    """The samples [N, ...] in a `.npy` file: of the run's shape and, where it learned pixels, pixels in any form.

    Raises:
        DataError: it is no array of numbers, of another shape, or holds what no sample of the run can be.
    """
    values, shape = _read_array(content, name), answering.input_shape
    allowed = f"allowed are [N, {', '.join(map(str, shape))}] and one sample {list(shape)}"
    if values.dtype.kind not in "biuf":
        raise DataError(f"{name} holds {values.dtype}: allowed are numbers")
    if values.shape == shape:
        values = values[None]
    if values.shape[1:] != shape or len(values) == 0:
        hint = channels_hint(torch.empty(values.shape, device="meta"))
        raise DataError(f"{name} has shape {list(values.shape)}: {allowed}{hint}")
    found = as_learned(values, answering.learned, name)
    assert isinstance(found, Tensor)
    return found


def _read_array(content: bytes, name: str) -> npt.NDArray[Any]:
    """A `.npy` file, which executes nothing and is not larger than it says."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = read(file)
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(content) - file.tell():
            raise ValueError("its size does not fit its shape" if not dtype.hasobject else "it holds Python objects")
        file.seek(0)
        values: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # NumPy's parser of headers raises nearly anything on damaged ones
        if out_of_memory(error):
            raise
        raise DataError(f"{name} is no readable .npy array ({one_line(error)})") from None
    return values


def table(answers: Sequence[Answer], top: int) -> Table:
    """For a terminal: a line for each sample."""
    made = Table("sample", *(["class", "probability"] if top == 1 else [f"{k + 1}." for k in range(top)]))
    for one in answers:
        where = neutral.line(_called(one.file, one.sample))
        best = [(neutral.line(name), f"{p:.1%}") for name, p in one.best]
        cells = [*best[0]] if top == 1 else [f"{name} {p}" for name, p in best]
        made.add_row(*(Text(cell, overflow="fold") for cell in [where, *cells]))
    return made


def as_csv(answers: Sequence[Answer]) -> str:
    """A line for each sample and rank."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "sample", "rank", "class", "probability"])
    for one in answers:
        for rank, (name, p) in enumerate(one.best, start=1):
            where = [neutral.csv_cell(one.file), "" if one.sample is None else one.sample]
            writer.writerow([*where, rank, neutral.csv_cell(name), f"{p:.6g}"])
    return text.getvalue()


def as_json(answers: Sequence[Answer]) -> str:
    """A list of objects; JSON escapes whatever is no plain letter."""
    rows = [
        {
            "file": one.file,
            "sample": one.sample,
            "answers": [{"class": name, "probability": p} for name, p in one.best],
        }
        for one in answers
    ]
    return json.dumps(rows, indent=2) + "\n"
