"""One checkpoint: a folder with manifest.json, state.json and tensors.safetensors.

The manifest names the format's version and the size and SHA-256 of the other two. Everything is checked before it is
used: sizes before a file is read, checksums before it is parsed, the parsed values before they reach a model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sparcl.checkpoint import disk
from sparcl.checkpoint.tree import State, buffer, flatten, from_json, to_json, unflatten
from sparcl.errors import CheckpointError, one_line, out_of_memory

FORMAT, VERSION = "sparcl checkpoint", 1
MANIFEST, STATE, TENSORS = "manifest.json", "state.json", "tensors.safetensors"
LIMITS = {MANIFEST: 1 << 16, STATE: 16 << 20, TENSORS: 8 << 30}
"""Largest allowed size of each file, in bytes. JSON takes some twenty times its size in memory, tensors twice."""

DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The dtypes that a checkpoint may hold, by their safetensors names."""


def safetensors_parts(tensors: Mapping[str, Tensor]) -> Iterator[disk.Bytes]:
    """The bytes of a safetensors file, in parts, without a copy of the whole.

    Larger elements come first (so each tensor is aligned), then names in order: equal tensors give equal bytes.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise CheckpointError(f"tensor {name} has dtype {tensor.dtype}, which cannot be saved")
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, end = {}, 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": DTYPES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        if tensors[name].numel():
            yield buffer(tensors[name])


def write(folder: Path, state: State) -> None:
    """Write the three files into an existing, empty folder and sync them and it."""
    tree, tensors = flatten(state)
    written = {
        TENSORS: disk.write_file(folder / TENSORS, safetensors_parts(tensors)),
        STATE: disk.write_file(folder / STATE, [to_json(tree)]),
    }
    files = {name: {"bytes": w.size, "sha256": w.sha256} for name, w in written.items()}
    disk.write_file(folder / MANIFEST, [to_json({"format": FORMAT, "version": VERSION, "files": files})])
    disk.sync_folder(folder)


def read(folder: Path) -> State:
    """The state in a checkpoint folder.

    Raises:
        CheckpointError: missing, damaged, of another version, or not a checkpoint at all.
    """
    files = _manifest(folder)
    content = {name: _checked(folder / name, files[name]) for name in (STATE, TENSORS)}
    try:
        tree = from_json(content[STATE], STATE)
        return unflatten(tree, tensors_of(content[TENSORS]))
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {folder} is damaged: {error}") from None


def _manifest(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and checksum of each file."""
    manifest = from_json(disk.read_file(folder / MANIFEST, LIMITS[MANIFEST]), f"{folder / MANIFEST}")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{folder} is not a sparcl checkpoint")
    if type(version := manifest.get("version")) is not int or version != VERSION:
        raise CheckpointError(f"checkpoint {folder} has format version {version!r:.40}; this sparcl reads {VERSION}")
    files = manifest.get("files")
    if not isinstance(files, dict) or set(files) != {STATE, TENSORS} or set(manifest) != {"format", "version", "files"}:
        raise CheckpointError(f"checkpoint {folder} is damaged: its manifest does not name {STATE} and {TENSORS}")
    found = {}
    for name, entry in files.items():
        fits = isinstance(entry, dict) and set(entry) == {"bytes", "sha256"}
        if not fits or type(entry["bytes"]) is not int or not isinstance(entry["sha256"], str):
            raise CheckpointError(f"checkpoint {folder} is damaged: its manifest gives no size and checksum of {name}")
        found[name] = (entry["bytes"], entry["sha256"])
    return found


def _checked(path: Path, expected: tuple[int, str]) -> bytes:
    size, sha256 = expected
    if not 0 <= size <= LIMITS[path.name]:
        raise CheckpointError(f"{path} would have {size} bytes; at most {LIMITS[path.name]} are allowed")
    data = disk.read_file(path, LIMITS[path.name])
    if len(data) != size:
        raise CheckpointError(f"checkpoint {path.parent} is damaged: {path.name} has {len(data)} bytes, not {size}")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CheckpointError(f"checkpoint {path.parent} is damaged: the checksum of {path.name} is wrong")
    return data


def tensors_of(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file (its own parser refuses offsets that do not fit) of the allowed dtypes."""
    _check_header(data)
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, TypeError, RuntimeError, OverflowError, KeyError) as error:
        if out_of_memory(error):
            raise
        raise CheckpointError(f"{TENSORS} is not valid ({one_line(error)})") from None


def _check_header(data: bytes) -> None:
    """Names, dtypes and sizes that agree, before anything is allocated."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8 or length > LIMITS[STATE]:
        raise CheckpointError(f"{TENSORS} has a header that does not fit")
    header = from_json(data[8 : 8 + length], f"the header of {TENSORS}")
    if not isinstance(header, dict):
        raise CheckpointError(f"{TENSORS} has no header")
    sizes = {name: dtype.itemsize for dtype, name in DTYPES.items()}
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise CheckpointError(f"{TENSORS} describes {name!r:.60} wrongly")
        if entry["dtype"] not in tuple(sizes):
            raise CheckpointError(f"{TENSORS} holds {name!r:.60} of an unknown dtype; allowed: {', '.join(sizes)}")
        if not _whole(entry["shape"]) or not _whole(entry["data_offsets"]) or len(entry["data_offsets"]) != 2:
            raise CheckpointError(f"{TENSORS} describes {name!r:.60} wrongly")
        begin, end = entry["data_offsets"]
        if math.prod(entry["shape"]) * sizes[entry["dtype"]] != end - begin or end > len(data) - 8 - length:
            raise CheckpointError(f"{TENSORS} holds {name!r:.60} whose size does not fit its shape")


def _whole(values: Any) -> bool:
    """Whether it is a short list of numbers from 0 to 2^40."""
    return isinstance(values, list) and len(values) <= 16 and all(type(v) is int and 0 <= v <= 1 << 40 for v in values)
