"""One file for a device: `model.sparcl`, a safetensors file whose metadata says the rest; docs/device.md describes it.

The tensors are those of a checkpoint, by their paths in the state; the metadata is JSON. Nothing in it is code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sparcl.checkpoint import disk, files
from sparcl.checkpoint.tree import State, flatten, from_json, to_json, unflatten
from sparcl.errors import CheckpointError

FORMAT, VERSION = "sparcl model", "1"
METADATA = "__metadata__"
PARTS = ("classes", "device", "graph", "input_shape", "state", "transform")
"""What the metadata says, each a JSON value, beside `format`, `version` and `sha256`."""


@dataclass(frozen=True)
class ModelFile:
    """What a device needs.

    Attributes:
        state: a Learner's, as `Learner.checkpoint_state` gives it.
        graph: the network's layers (`sparcl.nn.graph`).
        input_shape: of one sample, [C, H, W] or [F].
        classes: names, one for each logit.
        transform: `mean`, `std` (lists), `crop_padding`, `flip`.
        device: `method` and `sparsifier`, their names and numbers, defaults filled in; `cost`: what a device counted.
    """

    state: State
    graph: list[dict[str, Any]]
    input_shape: list[int]
    classes: list[str]
    transform: dict[str, Any]
    device: dict[str, Any]


def write(path: Path, model: ModelFile) -> None:
    """Put the file in the place of an old one, whole and synced, or leave the old one as it was.

    Raises:
        CheckpointError: something in the state cannot be saved, or the disk refuses.
    """
    tree, tensors = flatten(model.state)
    values = {"state": tree, **{part: getattr(model, part) for part in PARTS if part != "state"}}
    try:
        disk.write_output(path, _parts(tensors, {part: to_json(values[part]).decode() for part in PARTS}))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from None


def _parts(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> Iterator[disk.Bytes]:
    first, *data = files.safetensors_parts(tensors)
    header = json.loads(bytes(first)[8:])
    digest = _digest(data, texts)
    header = {METADATA: {"format": FORMAT, "version": VERSION, "sha256": digest, **texts}, **header}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    yield from data


def _digest(data: list[disk.Bytes] | list[bytes], texts: Mapping[str, str]) -> str:
    """SHA-256 of the tensors' bytes and, in the order of their names, of the metadata's texts."""
    digest = hashlib.sha256()
    for part in data:
        digest.update(part)
    for name in PARTS:
        digest.update(texts[name].encode())
    return digest.hexdigest()


def read(path: Path) -> ModelFile:
    """A model file; all of it is checked but what only a Learner knows.

    Raises:
        CheckpointError: missing, damaged, of another version, or no such file at all.
    """
    data = disk.read_file(path, files.LIMITS[files.TENSORS])
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, files.LIMITS[files.STATE]):
        raise CheckpointError(f"{path} is no sparcl model: its header does not fit")
    header = from_json(data[8 : 8 + length], f"the header of {path}")
    said = header.pop(METADATA, None) if isinstance(header, dict) else None
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no sparcl model")
    if said.get("version") != VERSION:
        raise CheckpointError(f"{path} has format version {said.get('version')!r:.40}; this sparcl reads {VERSION}")
    if set(said) != {"format", "version", "sha256", *PARTS} or not all(isinstance(v, str) for v in said.values()):
        raise CheckpointError(f"{path} is damaged: its metadata needs format, version, sha256, {', '.join(PARTS)}")
    if _digest([data[8 + length :]], said) != said["sha256"]:
        raise CheckpointError(f"{path} is damaged: its checksum is wrong")
    text = json.dumps(header).encode()
    tensors = files.tensors_of(len(text).to_bytes(8, "little") + text + data[8 + length :])
    values = {part: from_json(said[part].encode(), f"{part} of {path}") for part in PARTS}
    return ModelFile(**{**values, "state": unflatten(values["state"], tensors)})
