import errno
import io
import os
import struct
import tarfile
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_data import tree, write_folder, write_tar, write_zip

from sparcl.errors import DataError
from sparcl.streams import files, folder, seq_cifar10, seq_tinyimg
from sparcl.streams.files import members

FILES = {"train/a/1.txt": b"one", "train/b/2.txt": b"two" * 50_000, "test/a/3.txt": b""}


def contents(path):
    return {"/".join(m.parts): m.read() for m in members(path, ("train", "test")) if not m.is_folder}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_a_tar_is_read_whatever_its_name(tmp_path, mode):
    assert contents(write_tar(tmp_path / "data", FILES, mode)) == FILES


def test_a_zip_and_a_folder_are_read(tmp_path):
    assert contents(write_zip(tmp_path / "data", FILES)) == FILES
    write_folder(tmp_path / "folder", FILES | {"other/4.txt": b"not asked for"})
    assert contents(tmp_path / "folder") == FILES


def test_a_named_pipe_in_a_folder_is_refused_and_waited_for_by_nobody(tmp_path):
    write_folder(tmp_path, FILES)
    os.mkfifo(tmp_path / "train" / "a" / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png cannot be read: it is not a regular file"):
        contents(tmp_path)


def test_folders_are_listed_even_when_empty(tmp_path):
    (tmp_path / "train" / "empty").mkdir(parents=True)
    assert ("train", "empty") in {m.parts for m in members(tmp_path, ("train",)) if m.is_folder}


def denied(monkeypatch, folder):
    """`folder` cannot be listed, also where the tests run as root."""
    listed = os.scandir

    def scandir(place):
        if os.path.samefile(place, folder):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(place))
        return listed(place)

    monkeypatch.setattr(os, "scandir", scandir)


def test_a_folder_that_cannot_be_listed_is_named_and_not_left_out(tmp_path, monkeypatch):
    write_folder(tmp_path, FILES)
    denied(monkeypatch, tmp_path / "train" / "a")
    with pytest.raises(DataError, match=r"train/a cannot be read: Permission denied"):
        contents(tmp_path)


@pytest.mark.parametrize(
    "links",
    [{"train/a/up": ".."}, {"train/a/up": "..", "train/b/up": "../.."}, {"train/a/b": "../b", "train/b/a": "../a"}],
)
def test_links_that_go_in_circles_are_not_followed_round_and_round(tmp_path, links):
    write_folder(tmp_path, FILES)
    for place, target in links.items():
        os.symlink(target, tmp_path / place)
    found = contents(tmp_path)
    assert found.items() >= FILES.items()
    assert len(found) < 3 * len(FILES)


def test_a_link_to_another_folder_is_followed(tmp_path):
    write_folder(tmp_path, FILES)
    write_folder(tmp_path / "elsewhere", {"9.txt": b"nine"})
    os.symlink("../elsewhere", tmp_path / "train" / "c")
    os.symlink("a", tmp_path / "train" / "d")
    assert contents(tmp_path) == FILES | {"train/c/9.txt": b"nine", "train/d/1.txt": b"one"}


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (special("/etc/cron.d/x", tarfile.REGTYPE), "leaves the archive"),
        (special("train/../../x", tarfile.REGTYPE), "leaves the archive"),
        (special("train\\..\\x", tarfile.REGTYPE), "leaves the archive"),
        (special("train/a/link", tarfile.SYMTYPE, "/etc/passwd"), "a link or a device"),
        (special("train/a/hard", tarfile.LNKTYPE, "train/a/1.png"), "a link or a device"),
        (special("train/a/fifo", tarfile.FIFOTYPE), "a link or a device"),
        (special("train/a/disk", tarfile.BLKTYPE), "a link or a device"),
    ],
)
def test_hostile_members_of_a_tar_are_refused(tmp_path, info, message):
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        archive.addfile(info)
    with pytest.raises(DataError, match=message):
        contents(tmp_path / "data.tar")


def test_hostile_members_of_a_zip_are_refused(tmp_path):
    with pytest.raises(DataError, match="leaves the archive"):
        contents(write_zip(tmp_path / "up.zip", {"../x": b""}))
    link = zipfile.ZipInfo("train/a/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="a link or a device"):
        contents(tmp_path / "link.zip")


def test_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_MEMBER_BYTES", 1000)
    bomb = {"train/a/big": bytes(5000)}
    for path in (
        write_tar(tmp_path / "b.tgz", bomb),
        write_zip(tmp_path / "b.zip", bomb),
        write_folder(tmp_path / "b", bomb),
    ):
        with pytest.raises(DataError, match="larger than the 1000 bytes"):
            contents(path)
    monkeypatch.setattr(files, "MAX_MEMBER_BYTES", 1 << 30)
    monkeypatch.setattr(files, "FREE_BYTES", 2000)
    bomb["train/a/big"] = bytes(10**6)
    for path in (write_tar(tmp_path / "b.tgz", bomb), write_zip(tmp_path / "b.zip", bomb)):
        with pytest.raises(DataError, match="decompression bomb"):
            contents(path)


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_MEMBERS", 2)
    with pytest.raises(DataError, match="more than 2 members"):
        contents(write_tar(tmp_path / "many.tar", FILES, "w"))
    with pytest.raises(DataError, match="more than 2 files"):
        contents(write_folder(tmp_path / "many", FILES))


def test_a_lying_size_in_a_zip_does_not_matter(tmp_path):
    content = bytearray(write_zip(tmp_path / "lie.zip", {"train/a/1.txt": b"one" * 100}).read_bytes())
    at = content.index(b"PK\1\2") + 24  # the size in the central directory
    content[at : at + 4] = struct.pack("<I", 10)
    (tmp_path / "lie.zip").write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        contents(tmp_path / "lie.zip")


@pytest.mark.parametrize("content", [b"", b"no archive at all" * 100, b"PK\3\4 no zip", b"\x1f\x8bxx", b"\xfd7zXZ\0xx"])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "data.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"damaged, truncated or no archive .*allowed are \.tar, ") as caught:
        contents(tmp_path / "data.tar.gz")
    assert "\n" not in str(caught.value)


def test_an_absent_path_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        contents(tmp_path / "nothing")


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2"])
@given(cut=st.integers(1, 400), at=st.integers(0, 10**6), flip=st.integers(1, 255))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_truncated_or_damaged_archive_never_gives_other_files(tmp_path, mode, cut, at, flip):
    path = tmp_path / "data"
    whole = bytearray(write_tar(path, FILES, mode).read_bytes())
    path.write_bytes(whole[:-cut])
    with pytest.raises(DataError, match="damaged"):
        contents(path)
    whole[at % len(whole)] ^= flip
    path.write_bytes(whole)
    try:
        found = contents(path)
    except DataError:
        return
    assert found == FILES  # a byte that no checksum covers and that means nothing, such as a time


def test_a_plain_tar_that_is_cut_or_has_a_broken_header_is_refused(tmp_path):
    path = tmp_path / "data.tar"
    whole = write_tar(path, FILES, "w").read_bytes()
    headers = [whole.index(name.encode()) for name in FILES]
    end = headers[-1] + 512
    for cut in (*headers[1:], *range(100, end, 4999), end):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match="damaged"):
            contents(path)
    for header in headers:
        path.write_bytes(whole[: header + 1] + b"?" + whole[header + 2 :])
        with pytest.raises(DataError, match="damaged"):
            contents(path)


@pytest.mark.parametrize("pack", [write_folder, write_tar, write_zip])
def test_progress_ends_at_its_total(tmp_path, pack):
    path = pack(tmp_path / "data", tree(3))
    calls = []
    for member in members(path, ("train", "test"), lambda done, total: calls.append((done, total))):
        member.read()
    done, total = zip(*calls, strict=True)
    assert done[-1] == total[-1] > 0
    assert list(done) == sorted(done)
    assert len(set(total)) == 1


def test_reading_is_bounded_by_what_is_there():
    assert files.read_bounded(io.BytesIO(b"abc"), 3, "x") == b"abc"
    with pytest.raises(DataError, match="x is larger than the 2 bytes"):
        files.read_bounded(io.BytesIO(b"abc"), 2, "x")


def test_a_zip_member_without_a_name_is_refused(tmp_path):
    data = write_zip(tmp_path / "a.zip", {"x": b"1"}).read_bytes()
    directory = data.index(b"PK\x01\x02")
    nameless = bytearray(data)
    nameless[directory + 28 : directory + 30] = b"\0\0"  # length of the name in the central directory
    nameless[directory + 30 : directory + 32] = b"\1\0"  # what was the name is now its extra field
    (tmp_path / "a.zip").write_bytes(nameless)
    with pytest.raises(DataError):
        list(members(tmp_path / "a.zip", ()))


@pytest.mark.parametrize("stream", [seq_cifar10, seq_tinyimg, folder])
@pytest.mark.parametrize("name", [".", "./."])
def test_a_zip_member_whose_name_is_no_name_is_refused(tmp_path, stream, name):
    packed = write_zip(tmp_path / "a.zip", {**tree(), name: b"1"})
    with pytest.raises(DataError, match="a member without a name: refused"):
        stream(packed)


def test_the_folder_that_a_tar_begins_with_may_be_called_dot(tmp_path):
    write_folder(tmp_path / "data", FILES)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "data", ".")
    assert contents(tmp_path / "a.tar") == FILES
