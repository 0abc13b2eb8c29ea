import io
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_data import noise, picture, write_zip
from PIL import Image

from sparcl.errors import ConfigError, DataError, SparclError
from sparcl.streams import room
from sparcl.streams.folder import read_tree
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


CORNERS = np.array([[0, 60, 60], [120, 180, 180]], dtype=np.uint8).repeat(16, 0).repeat(16, 1)[..., None].repeat(3, 2)
"""A picture [32, 48, 3] that no turn or mirror leaves as it is."""


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_picture_stands_as_its_exif_says_it_was_taken(form, orientation):
    image, buffer = Image.fromarray(CORNERS), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(buffer, form, exif=exif, **({"quality": 100} if form == "JPEG" else {}))
    found = decode(buffer.getvalue(), "x").astype(int)
    top_left_goes_to = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert found.shape == ((32, 48, 3) if orientation < 5 else (48, 32, 3))
    darkest, lightest = top_left_goes_to[orientation], tuple(-1 - k for k in top_left_goes_to[orientation])
    assert int(found[darkest][0]) == pytest.approx(0, abs=20)
    assert int(found[lightest][0]) == pytest.approx(180, abs=20)


def test_damaged_exif_beside_whole_pixels_is_passed_over():
    buffer = io.BytesIO()
    Image.fromarray(CORNERS).save(buffer, "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")
    assert decode(buffer.getvalue(), "x.jpg").shape == CORNERS.shape


@pytest.mark.parametrize("most", [65535, 1023])
def test_a_grey_map_of_more_than_8_bits_is_read_by_its_upper_8(most):
    levels = np.array([[0, most // 2, most]], dtype=">u2")
    for content in (b"P5 3 1 %d\n" % most + levels.tobytes(), b"P2 3 1 %d\n0 %d %d\n" % (most, most // 2, most)):
        assert decode(content, "x.pgm")[0, :, 0].tolist() == [0, 127, 255]


def test_32_bits_a_channel_are_refused_for_what_they_are():
    buffer = io.BytesIO()
    Image.new("I", (4, 4), 70_000).save(buffer, "TIFF")
    with pytest.raises(DataError, match="32 bits per channel, 8 or 16 are needed"):
        decode(buffer.getvalue(), "x.tif")


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


def test_more_than_memory_holds_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr("sparcl.streams.room.memory_left", lambda: 5000)
    images = ImageSet()
    images.add("train", "a", "1.png", picture())
    monkeypatch.setattr("sparcl.streams.images._to_rgb", None)  # it would be called to decode
    with pytest.raises(DataError, match="resize"):
        images.add("train", "a", "2.png", picture())


def test_a_small_archive_of_giant_blank_pictures_is_refused_before_they_are_decoded(tmp_path):
    """20 kB would become 15 GB, and resized ones an hour of work."""
    picture_ = io.BytesIO()
    Image.new("1", (8000, 8000)).save(picture_, "PNG")
    files = {f"{split}/a/{i}.png": picture_.getvalue() for split in ("train", "test") for i in range(40)}
    archive = write_zip(tmp_path / "bomb.zip", files)
    assert archive.stat().st_size < 100_000
    for size in (None, (8, 8)):
        with pytest.raises(DataError, match=r"bomb|memory"):
            read_tree(archive, size, None)


def test_what_memory_is_left_is_bounded_by_the_process(monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (0, 0))
    assert room.memory_left() == 0
