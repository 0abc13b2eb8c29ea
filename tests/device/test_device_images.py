"""Images on the device are the bytes that Python's reader makes of them: PNG, JPEG, PPM of every kind."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import made
import numpy as np
import numpy.typing as npt
import PIL
import pytest
import torch
from PIL import Image

from sparcl import Learner
from sparcl.checkpoint import model_file
from sparcl.errors import DataError
from sparcl.methods import DERpp
from sparcl.nn import ConvNet
from sparcl.run.export_device import export_device
from sparcl.run.predict import GREY
from sparcl.streams import Transform, images

MOST = 200
OLDER = int(PIL.__version__.split(".")[0]) < 13
"""Pillow resized columns before rows whatever the sizes: rounded otherwise here and there."""


@pytest.fixture(autouse=True)
def readers(program: Path, request: pytest.FixtureRequest) -> None:
    if "PNG" not in made.run(program, "--help").stdout and "without" not in request.node.name:
        pytest.skip("the program was built without libjpeg-turbo and libpng")


def network(path: Path, channels: int, height: int, width: int) -> Path:
    """A file that remembers, in one step, everything that it is given."""
    torch.manual_seed(0)
    learner = Learner(ConvNet(1, channels, 4), DERpp(MOST), lr=0.001, batch_size=MOST, epochs=1)
    export_device(learner, path, transform=Transform(), input_shape=(channels, height, width), classes=["none"])
    return path


def seen(
    program: Path, folder: Path, files: Mapping[str, bytes], shape: tuple[int, int, int], *options: str
) -> dict[str, npt.NDArray[np.uint8]]:
    """What the program made of each file, [C, H, W]: each is a class of its own, learned and so remembered."""
    folder.mkdir()
    model = network(folder / "m.sparcl", *shape)
    for name, content in files.items():
        place = folder / "images" / name / "x"
        place.parent.mkdir(parents=True)
        place.write_bytes(content)
    done = made.run(program, "learn", model, folder / "images", "--epochs", 1, *options)
    assert (done.returncode, done.stderr) == (0, "")
    left = model_file.read(model)
    buffer = left.state["learner"]["method"]["buffer"]
    return {left.classes[k]: x for k, x in zip(buffer["labels"].tolist(), buffer["inputs"].numpy(), strict=True)}


def check(
    program: Path,
    folder: Path,
    files: Mapping[str, bytes],
    shape: tuple[int, int, int],
    size: tuple[int, int] | None = None,
) -> None:
    ours = seen(program, folder, files, shape, *(["--resize"] if size else []))
    assert set(ours) == set(files)
    for name, content in files.items():
        theirs = images.decode(content, name, size).astype(np.uint32)
        if shape[0] == 1:
            theirs = ((theirs @ np.array(GREY, dtype=np.uint32) + 500) // 1000)[:, :, None]
        apart = np.abs(ours[name].astype(int) - theirs.transpose(2, 0, 1).astype(int)).max()
        assert apart <= (1 if size and OLDER else 0), name


def picture(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Smooth in places, noise in others."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    smooth = np.stack([np.sin(7 * x + 3 * y), np.cos(9 * y), x * y], axis=2) * 127 + 128
    noise = rng.normal(0, 60, (height, width, 3)) * (x > 0.4)[:, :, None]
    return (smooth + noise).clip(0, 255).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int, order: str = "<", kind: str = "H") -> bytes:
    return tiff(((0x0112, {"H": 3, "I": 4}[kind], struct.pack(order + kind, orientation), 1),), order)


def tiff(entries: Sequence[tuple[int, int, bytes, int]], order: str = "<") -> bytes:
    """EXIF of these entries: tag, number of the type, bytes of the values, how many they are."""
    directory, behind, end = b"", b"", 8 + 2 + 12 * len(entries) + 4
    for tag, kind, data, count in entries:
        short = len(data) <= 4
        where = data.ljust(4, b"\0") if short else struct.pack(order + "I", end + len(behind))
        directory += struct.pack(order + "HHI", tag, kind, count) + where
        behind += b"" if short else data
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + mark + struct.pack(order + "IH", 8, len(entries)) + directory + b"\0" * 4 + behind


H, W = 37, 29


def jpegs() -> dict[str, bytes]:
    rgb = Image.fromarray(picture(H, W))
    files = {
        f"q{quality}-{sampling}-{progressive}": saved(
            rgb, "JPEG", quality=quality, subsampling=sampling, progressive=progressive
        )
        for quality in (30, 75, 100)
        for sampling in ("4:4:4", "4:2:2", "4:2:0")
        for progressive in (False, True)
    }
    files |= {"kept": saved(rgb, "JPEG", keep_rgb=True)}
    files |= {"grey": saved(rgb.convert("L"), "JPEG"), "inks": saved(rgb.convert("CMYK"), "JPEG")}
    files["inks-plain"] = files["inks"].replace(b"Adobe", b"Nobod")
    files["restarts"] = saved(rgb, "JPEG", restart_marker_blocks=3)
    for turn in (0, 1, 2, 3, 4, 9):
        files[f"exif{turn}"] = saved(rgb, "JPEG", exif=exif(turn))
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="3"/>'
    plain = files["q75-4:2:0-False"]
    files["xmp"] = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp + plain[2:]
    files["exif-damaged"] = saved(rgb, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    files["exif-big"] = saved(rgb, "JPEG", exif=exif(3, ">"))
    files["exif-long"] = saved(rgb, "JPEG", exif=exif(3, "<", "I"))
    return files


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(bits: int, colour: int, rows: bytes, *before: bytes, height: int = H, width: int = W) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *before, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def noise_rows(bits: int, channels: int, seed: int = 1) -> bytes:
    length = (W * bits * channels + 7) // 8
    rng = np.random.default_rng(seed)
    return b"".join(b"\0" + rng.bytes(length) for _ in range(H))


def pngs() -> dict[str, bytes]:
    rgb = Image.fromarray(picture(H, W))
    files = {mode: saved(rgb.convert(mode), "PNG") for mode in ("RGB", "L", "1", "P", "RGBA", "LA")}
    for bits, colour, channels in [(1, 0, 1), (2, 0, 1), (4, 0, 1), (16, 0, 1), (16, 2, 3), (16, 4, 2), (16, 6, 4)]:
        files[f"{bits}-{colour}"] = png(bits, colour, noise_rows(bits, channels))
    palette = chunk(b"PLTE", np.random.default_rng(2).bytes(3 * 16))
    for bits in (1, 2, 4, 8):
        few = palette if bits > 2 else chunk(b"PLTE", np.random.default_rng(2).bytes(3 * 2**bits))
        files[f"palette{bits}"] = png(bits, 3, noise_rows(bits, 1), few)
    files["palette-clear"] = png(4, 3, noise_rows(4, 1), palette, chunk(b"tRNS", bytes(range(0, 160, 10))))
    files["grey-clear"] = png(8, 0, noise_rows(8, 1), chunk(b"tRNS", b"\0\x07"))
    files["rgb-clear"] = png(8, 2, noise_rows(8, 3), chunk(b"tRNS", b"\0\x07\0\x08\0\x09"))
    files["gamma"] = png(8, 2, noise_rows(8, 3), chunk(b"gAMA", struct.pack(">I", 45455)))
    files["exif"] = saved(rgb, "PNG", exif=exif(3))
    xmp = b"XML:com.adobe.xmp\0\0\0\0\0<tiff:Orientation>3</tiff:Orientation>"
    files["xmp"] = png(8, 2, noise_rows(8, 3), chunk(b"iTXt", xmp))
    raw = b"Raw profile type exif\0\nexif\n      34\n" + exif(3).hex().encode() + b"\n"
    for name, text in (("raw-exif", raw), ("raw-exif-odd", raw[:-2] + b"\n"), ("raw-exif-no-hex", raw[:-3] + b"xy\n")):
        files[name] = png(8, 2, noise_rows(8, 3), chunk(b"tEXt", text))
    return files


def interlaced() -> bytes:
    """Adam7, which Pillow does not write: the seven passes of an RGB picture."""
    pixels, rows = picture(H, W, 3), b""
    for x, y, dx, dy in [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]:
        rows += b"".join(b"\0" + row.tobytes() for row in pixels[y::dy, x::dx])
    header = struct.pack(">IIBBBBB", W, H, 8, 2, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pnms() -> dict[str, bytes]:
    rgb = Image.fromarray(picture(H, W))
    files = {"ppm": saved(rgb, "PPM"), "pgm": saved(rgb.convert("L"), "PPM")}
    for most in (1, 2, 100, 170, 254):  # what is larger counts as the largest
        values = np.minimum(picture(H, W), min(most + 5, 255))
        files[f"ppm of {most}"] = b"P6\n%d %d\n%d\n" % (W, H, most) + values.tobytes()
        files[f"pgm of {most}"] = b"P5\n%d %d\n%d\n" % (W, H, most) + values[:, :, 0].tobytes()
    return files


ALL: dict[str, Callable[[], dict[str, bytes]]] = {
    "jpeg": jpegs,
    "png": lambda: pngs() | {"interlaced": interlaced()},
    "pnm": pnms,
}


@pytest.mark.parametrize("kind", list(ALL))
def test_the_pixels_are_python_s(program: Path, tmp_path: Path, kind: str) -> None:
    files = ALL[kind]()
    assert all(images.decode(content, name).shape == (H, W, 3) for name, content in files.items())
    check(program, tmp_path / "rgb", files, (3, H, W))
    check(program, tmp_path / "grey", files, (1, H, W))


def test_all_ways_to_hold_a_camera(program: Path, tmp_path: Path) -> None:
    square = Image.fromarray(picture(H, H))
    files = {f"{kind}{k}": saved(square, kind, exif=exif(k)) for k in range(10) for kind in ("JPEG", "PNG")}
    assert not np.array_equal(*(images.decode(files[f"PNG{k}"], "x") for k in (6, 8)))
    check(program, tmp_path / "turned", files, (3, H, H))


def odd_orientations() -> dict[str, bytes]:
    """EXIF that says it otherwise than by one SHORT, by what is odd about it."""
    kinds = {4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q"}
    made = {}
    for order in "<>":
        as_pair = {5: struct.pack(order + "2I", 12, 2), 10: struct.pack(order + "2i", -6, -1)}
        no_ways = {1: b"\x06", 2: b"6\0", 7: b"\x06"}  # bytes and text, which are no number
        values = {**{k: struct.pack(order + code, 6) for k, code in kinds.items()}, **as_pair, **no_ways, 99: b"\x06\0"}
        made |= {f"type {k}{order}": tiff(((0x0112, k, value, 1),), order) for k, value in values.items()}
        for k, value in ((11, struct.pack(order + "f", 6.5)), (5, struct.pack(order + "2I", 6, 0))):
            made[f"no whole number {k}{order}"] = tiff(((0x0112, k, value, 1),), order)
    six, three = (0x0112, 3, b"\x06\0", 1), (0x0112, 3, b"\x03\0", 1)
    made["twice"] = tiff((six, three))
    made["first unknown"] = tiff(((0x0112, 99, b"\x06\0", 1), three))
    made["several"] = tiff(((0x0112, 3, struct.pack("<4H", 6, 3, 1, 1), 4),))
    made["behind what is cut"] = tiff(((0x010F, 2, b"maker", 30), six))
    made["behind what is longer than all"] = tiff(((0x010F, 2, b"maker", 1 << 20), six))
    made["none"] = tiff(((0x0112, 3, b"\x06\0", 0),))
    return made


@pytest.mark.skipif(OLDER, reason="Pillow took the last of two entries")
def test_an_orientation_of_any_type(program: Path, tmp_path: Path) -> None:
    square = Image.fromarray(picture(H, H))
    files = {name: saved(square, "JPEG", exif=said) for name, said in odd_orientations().items()}
    upright = images.decode(files["none"], "x")
    turned = {name for name, file in files.items() if not np.array_equal(images.decode(file, "x"), upright)}
    assert {"type 4<", "type 5>", "type 10<", "type 11>", "type 12<", "type 16>", "twice", "several"} < turned
    assert not turned & {"type 1<", "type 2>", "type 7<", "type 99>", "no whole number 11<", "behind what is cut"}
    check(program, tmp_path / "turned", files, (3, H, H))


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (37, 11), (5, 29), (64, 90), (1, 1)])
def test_resized_as_pillow_does(program: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    shapes = [(37, 29), (8, 8), (100, 3), (1, 64), (211, 157), (9, 8), (2, 2)]
    files = {f"{h}-{w}": saved(Image.fromarray(picture(h, w, h)), "PNG") for h, w in shapes}
    files["turned"] = saved(Image.fromarray(picture(40, 80)), "JPEG", exif=exif(6))
    check(program, tmp_path / "small", files, (3, *size), size)


def test_without_resize_another_size_is_refused(program: Path, tmp_path: Path) -> None:
    model = network(tmp_path / "m.sparcl", 3, 8, 8)
    (tmp_path / "x.png").write_bytes(saved(Image.fromarray(picture(9, 7)), "PNG"))
    done = made.run(program, "predict", model, tmp_path / "x.png")
    said = f"{tmp_path}/x.png has 7x9 pixels where the network takes 8x8: --resize makes them fit"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"sparcl-device: {said}\n")
    done = made.run(program, "predict", model, tmp_path / "x.png", "--resize")
    assert (done.returncode, done.stdout) == (0, f'"{tmp_path}/x.png" "none"\n')


def test_predict_takes_loose_images_and_learn_does_not(program: Path, tmp_path: Path) -> None:
    model = network(tmp_path / "m.sparcl", 3, 8, 8)
    (folder := tmp_path / "loose").mkdir()
    for name in "ab":
        (folder / f"{name}.jpg").write_bytes(saved(Image.fromarray(picture(8, 8)), "JPEG"))
    done = made.run(program, "predict", model, folder)
    assert done.stdout.splitlines() == [f'"{folder}/{name}.jpg" "none"' for name in "ab"]
    for place, said in ((folder, "holds no class folder with images"), (folder / "a.jpg", "without a class")):
        for command in ("learn", "evaluate"):
            done = made.run(program, command, model, place)
            assert (done.returncode, done.stderr.count("\n")) == (2, 1)
            assert said in done.stderr


def hostile() -> dict[str, tuple[bytes, str]]:
    rgb = Image.fromarray(picture(H, W))
    jpeg, progressive, whole = saved(rgb, "JPEG"), saved(rgb, "JPEG", progressive=True), saved(rgb, "PNG")
    size = jpeg.index(b"\xff\xc0") + 5
    scans = progressive.rindex(b"\xff\xda")
    return {
        "jpeg cut": (jpeg[: len(jpeg) // 2], "it ends too early"),
        "jpeg without end": (jpeg[:-2], "it ends too early"),
        "jpeg head": (jpeg[:200], "it ends too early"),
        "jpeg too large": (jpeg[:size] + b"\xff\x00\xff\x00" + jpeg[size + 4 :], "at most 64000000 are allowed"),
        "jpeg bomb": (jpeg[:size] + b"\x1f\x00\x1f\x00" + jpeg[size + 4 :], "decompression bomb"),
        "jpeg empty": (jpeg[:size] + b"\0\0\0\0" + jpeg[size + 4 :], "is no readable image"),
        "jpeg of scans": (progressive[:-2] + progressive[scans:-2] * 200 + b"\xff\xd9", "too many scans"),
        "png cut": (whole[: len(whole) // 2], "it ends too early"),
        "png without end": (whole[:-12], "it ends too early"),
        "png flipped": (whole[:100] + bytes([whole[100] ^ 1]) + whole[101:], "is no readable image"),
        "png too large": (png(8, 2, b"", height=1 << 16, width=1 << 16), "at most 64000000 are allowed"),
        "png beyond": (png(8, 2, b"", height=1 << 30, width=1 << 30), "is no readable image"),
        "png bomb": (png(1, 0, b"", height=7000, width=7000), "decompression bomb"),
        "png short": (png(8, 2, noise_rows(8, 3)[:99]), "is no readable image"),
        "gif": (saved(rgb, "GIF"), "allowed are PNG, JPEG, PPM, PGM"),
        "text": (b"no image", "allowed are PNG, JPEG, PPM, PGM"),
        "empty": (b"", "allowed are PNG, JPEG, PPM, PGM"),
        "ppm cut": (b"P6\n37 29\n255\n12", "it ends too early"),
        "ppm 16 bit": (b"P6\n8 8\n65535\n", "largest value is 65535, and must be 1 to 255"),
        "ppm of no values": (b"P6\n8 8\n0\n" + bytes(192), "largest value is 0, and must be 1 to 255"),
        "ppm odd": (b"P6\n-8 8\n255\n", "its header is damaged"),
        "ppm too large": (b"P6\n99999 99999\n255\n", "at most 64000000 are allowed"),
    }


def test_hostile_images_are_one_line_and_nothing_is_lost(program: Path, tmp_path: Path) -> None:
    model = network(tmp_path / "m.sparcl", 3, H, W)
    before = model.read_bytes()
    (file := tmp_path / "images" / "a" / "x").parent.mkdir(parents=True)
    for name, (content, said) in hostile().items():
        file.write_bytes(content)
        done = made.run(program, "learn", model, tmp_path / "images")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), (name, done)
        assert said in done.stderr, name
        assert model.read_bytes() == before
        assert not list(tmp_path.glob(".*")), "a lock or a half-written file stayed"
        if name.startswith(("jpeg cut", "jpeg without", "jpeg head", "png cut", "jpeg too", "png too")):
            with pytest.raises(DataError):  # as Python does
                images.decode(content, name)


def test_what_pillow_forgives_is_forgiven(program: Path, tmp_path: Path) -> None:
    """Odd bytes in the coded data and behind the end: the pixels are the same ones all the same."""
    rgb = Image.fromarray(picture(H, W))
    jpeg, whole = saved(rgb, "JPEG", restart_marker_blocks=1), saved(rgb, "PNG")
    at = jpeg.index(b"\xff\xd3", jpeg.index(b"\xff\xda"))
    files = {"behind": jpeg + b"more", "png behind": whole + b"more", "png": whole}
    files["extra"] = jpeg[:at] + b"\x01\x02" + jpeg[at:]
    files["flipped"] = jpeg[: at + 9] + bytes([jpeg[at + 9] ^ 0x10]) + jpeg[at + 10 :]
    check(program, tmp_path / "odd", files, (3, H, W))
