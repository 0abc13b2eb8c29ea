"""Short, deterministic parts of `make fuzz-device` and `make fault-device`."""

from __future__ import annotations

import random
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fuzzing_device
import killing_device
import made
import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=made.memory()) as place:
        yield Path(place)


def test_mutated_files_are_refused_or_taken_as_python_does(program: Path, folder: Path) -> None:
    if "PNG" not in made.run(program, "--help").stdout:
        pytest.skip("the program was built without libjpeg-turbo and libpng")
    found = fuzzing_device.fuzz(program, folder, 1, count=75)
    assert found.total() == 75
    for kind in fuzzing_device.KINDS:
        assert found[kind.__name__, "refused"]
    assert found["image", "taken"]
    assert found["samples", "taken"]
    assert found["arguments", "taken"]


def unchanged(data: bytes, rng: random.Random) -> bytes:
    del rng
    return data


def test_other_pixels_would_be_seen(program: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = fuzzing_device.Files(program, folder)
    files.images = files.images[-1:]
    monkeypatch.setattr(fuzzing_device, "mutate", unchanged)
    assert fuzzing_device.image(files, random.Random(0)) == 0
    decode = fuzzing_device.images.decode

    def others(*arguments: Any) -> Any:
        return decode(*arguments) ^ 1

    monkeypatch.setattr(fuzzing_device.images, "decode", others)
    with pytest.raises(AssertionError, match="other pixels"):
        fuzzing_device.image(files, random.Random(0))


@pytest.mark.parametrize("ends", [[signal.SIGKILL], [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]])
def test_killed_or_stopped_runs_go_on_to_the_same_bytes(
    program: Path, folder: Path, ends: list[signal.Signals]
) -> None:
    happened = killing_device.check(program, folder, random.Random(2), 40, ends)
    assert sum(happened[end.name] for end in ends) >= 3
