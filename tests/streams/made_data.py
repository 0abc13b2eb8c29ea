"""Images, folders and archives made on the spot."""

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def picture(value: int = 0, size: tuple[int, int] = (32, 32), mode: str = "RGB", form: str = "PNG") -> bytes:
    """An image file of one colour; `size` is (width, height)."""
    buffer = io.BytesIO()
    Image.new(mode, size, value if mode in ("L", "P", "I;16") else (value,) * len(mode)).save(buffer, form)
    return buffer.getvalue()


def noise(seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def tree(classes: int = 2, train: int = 3, test: int = 2, side: int = 32) -> dict[str, bytes]:
    """Files of an image tree; the value of every pixel tells split, class and number."""
    return {
        f"{split}/c{k:03}/{i}.png": picture((100 if split == "test" else 0) + 10 * (k % 10) + i, (side, side))
        for split, count in (("train", train), ("test", test))
        for k in range(classes)
        for i in range(count)
    }


def write_folder(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_tar(path: Path, files: Mapping[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path
