import io
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_data import noise, picture
from PIL import Image

from sparcl.errors import ConfigError, DataError, SparclError
from sparcl.streams.images import ImageSet, as_size, decode


def png(array, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_pixels_come_back_as_they_were():
    pixels = noise(0)
    assert np.array_equal(decode(png(pixels), "x.png"), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode):
    value = {"1": 1, "I;16": 0x8000}.get(mode, 0)
    image = Image.new(mode, (5, 4), value if len(mode) == 1 or mode == "I;16" else (0,) * len(mode))
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    out = decode(buffer.getvalue(), "x.tif")
    assert (out.shape, out.dtype) == ((4, 5, 3), np.uint8)
    assert int(out[0, 0, 0]) == {"1": 255, "I;16": 128, "CMYK": 255}.get(mode, 0)


def test_a_palette_with_transparency_gives_no_warning():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 9, 8, 7])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes([0, 128]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(buffer.getvalue(), "x.png")[0, 0].tolist() == [9, 8, 7]


def test_resize_is_height_then_width():
    assert decode(picture(7, (30, 20)), "x.png", (10, 6)).shape == (10, 6, 3)
    assert as_size(5) == (5, 5)
    assert as_size((3, 4)) == (3, 4)
    assert as_size(None) is None


@pytest.mark.parametrize("resize", [0, -1, (0, 3), (10**6, 10**6)])
def test_an_impossible_size_is_refused(resize):
    with pytest.raises(ConfigError, match="allowed are a side or"):
        as_size(resize)


def bomb(width, height):
    """A PNG of a few bytes that claims any size."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("width", [8_001, 12_000, 100_000])
def test_decompression_bombs_are_refused(width):
    with pytest.raises(DataError, match=r"train/a/x\.png .*(at most 64000000 are allowed|exceeds limit)"):
        decode(bomb(width, 8_000), "train/a/x.png")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        picture(1)[:-30],
        picture(1, form="JPEG")[:300],
        bomb(4, 4),
    ],
)
def test_damaged_and_other_files_are_refused_by_name(content):
    with pytest.raises(DataError, match=r"^test/dog/7\.png is no readable image .*allowed are JPEG, PNG") as caught:
        decode(content, "test/dog/7.png")
    assert "\n" not in str(caught.value)
    assert " at 0x" not in str(caught.value)  # a message is of the file, not of an object in memory


@given(at=st.integers(0, 10**6), value=st.integers(1, 255), form=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF"]))
def test_a_damaged_byte_is_refused_or_decoded_but_nothing_else(at, value, form):
    content = bytearray(picture(90, (16, 16), form=form))
    content[at % len(content)] ^= value
    try:
        assert decode(bytes(content), "x").ndim == 3
    except DataError:
        return


def test_missing_pillow_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(SparclError, match=r"pip install \"sparcl-edge\[images\]\""):
        decode(b"", "x.png")


def test_mixed_sizes_name_two_files_and_the_way_out():
    images = ImageSet()
    images.add("train", "a", "1.png", picture(0, (32, 32)))
    with pytest.raises(DataError, match=r"train/a/1\.png is 32×32, test/b/2\.png is 40×30; .* resize=32"):
        images.add("test", "b", "2.png", picture(0, (40, 30)))


def test_arrays_are_sorted_by_label_and_file_and_channels_first():
    images = ImageSet()
    for split in ("train", "test"):
        for name, number in (("b", 2), ("a", 10), ("a", 1), ("b", 1)):
            images.add(split, name, f"{number}.png", picture(10 * number + ord(name) - ord("a"), (5, 4)))
    arrays = images.arrays(["b", "a"], "train", "test", ["bee", "ant"])
    assert arrays.train_inputs.shape == (4, 3, 4, 5)
    assert arrays.train_inputs[:, 0, 0, 0].tolist() == [11, 21, 10, 100]
    assert arrays.train_labels.tolist() == arrays.test_labels.tolist() == [0, 0, 1, 1]
    assert arrays.class_names == ("bee", "ant")
    assert len(images) == 0


def test_too_many_decoded_bytes_are_refused(monkeypatch):
    monkeypatch.setattr("sparcl.streams.images.MAX_DECODED_BYTES", 5000)
    images = ImageSet()
    images.add("train", "a", "1.png", picture())
    with pytest.raises(DataError, match="resize"):
        images.add("train", "a", "2.png", picture())
