"""experiments/device_equal.py: what is recorded is not made again, and what a table says of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

import device_equal

from sparcl.streams import Stream


def test_a_stopped_comparison_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[tuple[str, int]] = []

    def both(method: str, stream: Stream, seed: int, program: Path, folder: Path) -> dict[str, tuple[float, float]]:
        assert (stream.name, program, folder.is_dir()) == ("seq-digits", Path("program"), True)
        made.append((method, seed))
        if made == [("er", 0), ("er", 1), ("derpp", 0)]:
            raise KeyboardInterrupt
        return {"accuracy": (90.0, 91.0 + 2 * seed), "executed": (5000.0, 5000.0), "masks": (40.0, 3.0)}

    monkeypatch.setattr(device_equal, "both", both)
    records = tmp_path / "new" / "records.json"
    arguments: tuple[Any, ...] = ("seq-digits", None, Path("program"))
    wanted = device_equal.rows("seq-digits", ("er", "derpp"), 2)
    with pytest.raises(KeyboardInterrupt):
        device_equal.collect(*arguments, wanted, records)
    assert [(r["method"], r["seed"]) for r in json.loads(records.read_text())] == [("er", 0), ("er", 1)]

    made.clear()
    found = device_equal.collect(*arguments, wanted, records)
    assert made == [("derpp", 0), ("derpp", 1)]
    assert json.loads(records.read_text()) == json.loads(json.dumps(found))
    assert "| er | 1 | 90.00 | 93.00 | 5,000 | 5,000 | 3 of 40 |" in capsys.readouterr().out
    said = device_equal.compared("er", found)  # +1 and +3: t = 2, one degree of freedom
    assert said == "er: device less Python +2.00 ± 1.41 points, p = 0.30"

    monkeypatch.setattr(device_equal, "EPOCHS", 11)  # other runs
    made.clear()
    device_equal.collect(*arguments, device_equal.rows("seq-digits", ("er",), 1), records)
    assert made == [("er", 0)]
    assert len(json.loads(records.read_text())) == 5


def test_the_committed_records_are_whole_and_of_equal_work() -> None:
    done = json.loads((Path(device_equal.__file__).parent / "results/device/seq-cifar10.json").read_text())
    wanted = device_equal.rows("seq-cifar10", ("er", "derpp"), 5)
    assert all(record.items() >= row.items() for record, row in zip(done, wanted, strict=True))
    assert all(python == device > 0 for python, device in (record["executed"] for record in done))
