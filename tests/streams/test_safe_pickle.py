import contextlib
import os
import pickle
import pickletools
import struct
import time
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl.errors import DataError
from sparcl.streams import safe_pickle


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("fortran", [False, True])
def test_plain_values_and_arrays_are_read(protocol, fortran):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    pixels = np.asfortranarray(pixels) if fortran else pixels
    value = {b"data": pixels, b"labels": [3, 0, 1], b"filenames": [b"a.png", b"\xff\x80"], "batch_label": "x"}
    read = safe_pickle.load(pickle.dumps(value, protocol), "batch")
    assert np.array_equal(read.pop(b"data"), pixels)
    value.pop(b"data")
    assert read == value


def test_strings_of_python_2_become_bytes():
    dumped = b"\x80\x02}q\x00U\x06labelsq\x01]q\x02(K\x03K\x07es."  # {'labels': [3, 7]} as Python 2 wrote it
    assert safe_pickle.load(dumped, "batch") == {b"labels": [3, 7]}


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_executes_nothing(tmp_path, protocol):
    mark = tmp_path / "executed"
    command = f"touch {mark}"
    hostile = [
        Calls(os.system, command),
        Calls(eval, f"open({str(mark)!r}, 'w')"),
        Calls(open, str(mark), "w"),
        Calls(getattr, os, "system"),
        Calls(np.load, str(mark), None, True),
        Calls(np.fromfile, str(mark)),
    ]
    for attack in hostile:
        try:
            content = pickle.dumps({b"data": attack}, protocol)
        except TypeError:  # a module cannot be pickled at all
            continue
        with pytest.raises(DataError, match="not allowed"):
            safe_pickle.load(content, "data_batch_1")
        assert not mark.exists()
    pickle.loads(pickle.dumps(hostile[0]))  # the attack is a real one
    assert mark.exists()


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"
DTYPE = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"


@pytest.mark.parametrize(
    "body",
    [
        b"cos\nsystem\n.",
        b"cnumpy\nload\n.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"cbuiltins\ngetattr\n.",
        b"Pname\n.",  # a persistent id
        b"(ios\nsystem\n.",  # INST
        b"\x82\x01.",  # a registered extension
        b"cnumpy\ndtype\n(U\x02O8K\x00K\x01tR.",  # an array of objects
        b"cnumpy\nndarray\n}U\x01aK\x01sb.",  # a new attribute for a global
        b"cnumpy\nndarray\nN}U\x05_callK\x01s\x86b.",  # a new value for a slot of it
        b"c_codecs\nencode\n(X\x01\x00\x00\x00aU\x03hextR.",
        b"}U\x04data" + ARRAY + b"s.",  # an array that never got data
        b"}U\x04data"
        + ARRAY
        + b"(K\x01J\xff\xff\xff\x7f\x85"
        + DTYPE
        + b"\x89C\x01xtbs.",  # 2 GB claimed, 1 byte there
        b"}U\x04data" + ARRAY + b"(K\x01J\xff\xff\xff\xff\x85" + DTYPE + b"\x89C\x01xtbs.",  # a negative size
        b"}U\x04data" + ARRAY + b"(K\x01K\x01\x85K\x05\x89C\x01xtbs.",  # a number in place of a type
        b"}U\x04data" + ARRAY + b"K\x01bs.",  # a state of another form
        b"B" + struct.pack("<I", 2**31) + b"x.",  # 2 GB of bytes claimed
        b"\x96" + struct.pack("<Q", 2**40) + b"x.",  # a terabyte of bytearray
        b"\x8a\xff.",
        b"}",
        b"",
    ],
)
def test_what_no_cifar_pickle_needs_is_refused(body):
    with pytest.raises(DataError, match=r"^batch is damaged, or no pickle of plain values") as caught:
        safe_pickle.load(b"\x80\x02" + body, "batch")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("body", [b"Nr" + struct.pack("<I", 2**31) + b".", b"Np2147483647\n."])
def test_a_memo_index_that_no_pickler_writes_allocates_nothing(body):
    assert safe_pickle.load(b"\x80\x02" + body, "batch") is None


def test_a_refused_pickle_leaves_the_next_one_alone():
    with pytest.raises(DataError):
        safe_pickle.load(b"\x80\x02cnumpy\nndarray\nN}U\x05_callK\x01s\x86b.", "batch")
    test_plain_values_and_arrays_are_read(2, False)


def test_other_classes_and_types_are_refused():
    for value in (OrderedDict(a=1), np.float32(1), np.zeros(3, dtype=np.int64), np.zeros(3, dtype=object)):
        with pytest.raises(DataError, match="not allowed"):
            safe_pickle.load(pickle.dumps({b"data": value}, 2), "batch")


def test_too_many_operations_are_refused(monkeypatch):
    monkeypatch.setattr(safe_pickle, "MAX_OPCODES", 100)
    with pytest.raises(DataError, match="more than 100 operations"):
        safe_pickle.load(pickle.dumps(list(range(200))), "batch")


WHOLE = pickle.dumps({b"data": np.zeros((2, 8), dtype=np.uint8), b"labels": [1, 2]}, 2)


@given(at=st.integers(0, len(WHOLE) - 1), value=st.binary(max_size=4), cut=st.booleans())
def test_damage_is_refused_or_harmless(at, value, cut):
    content = WHOLE[:at] + (value if cut else value + WHOLE[at + len(value) :])
    with contextlib.suppress(DataError):  # no other error gets out
        safe_pickle.load(content, "batch")
        for opcode, argument, _ in pickletools.genops(content):
            assert opcode.name != "GLOBAL" or argument.split()[0] in ("numpy", "numpy._core.multiarray", "_codecs")


def shared(build, depth):
    value = {}
    for _ in range(depth):
        value = build(value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        shared(lambda d: {b"a": d, b"b": d}, 40),
        shared(lambda d: {b"a": [d, d]}, 40),
        {b"a": shared(lambda d: (d, d), 40)},
        {b"a": shared(lambda d: [d, d], 60)},
        [[b"x"] * 3000] * 3000,
    ],
)
def test_a_few_bytes_do_not_become_endless_values(value):
    """Shared parts are counted as often as they are named: 2^40 dicts are 505 bytes of pickle."""
    before = time.monotonic()
    with pytest.raises(DataError, match=r"deep|values"):
        safe_pickle.load(pickle.dumps(value, 2), "batch")
    assert time.monotonic() - before < 20


def test_a_key_that_takes_for_ever_to_hash_is_refused_unhashed():
    pairs = b"(K\x01K\x02t" + b"q\x00h\x00\x86" * 60  # each a pair of the one before, twice
    before = time.monotonic()
    with pytest.raises(DataError):
        safe_pickle.load(b"\x80\x02}" + pairs + b"K\x01s.", "batch")
    with pytest.raises(DataError, match="key"):
        safe_pickle.load(b"\x80\x02}(K\x01K\x02tK\x01s.", "batch")
    assert time.monotonic() - before < 20


def test_the_same_bytes_again_and_again_are_refused():
    text = b"X" + struct.pack("<I", 1000) + b"a" * 1000 + b"q\x01"
    call = b"c_codecs\nencode\nq\x000" + text + b"0(" + b"h\x00h\x01\x85R" * 1000 + b"l."
    with pytest.raises(DataError, match="again and again"):
        safe_pickle.load(b"\x80\x02" + call, "batch")
