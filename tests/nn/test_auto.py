"""The choice of `auto`: measured once for each kind of layer, remembered by machine; and what the cache may hold."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nn.native import needs_native
from torch import nn

from sparcl import Learner, kernels
from sparcl.checkpoint import Store
from sparcl.errors import CheckpointError
from sparcl.nn import ConvNet, auto, choices
from sparcl.nn.compact import CompactLayer
from sparcl.run.progress import Measuring
from sparcl.sparsity import SparCL

pytestmark = needs_native


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "layers.json"


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The input shapes of what is timed, by a clock that likes inputs of fewer than 5 channels native."""
    seen: list[tuple[int, ...]] = []

    def faster(_: nn.Module, case: Any) -> str:
        seen.append(case.x)
        return "native" if case.x[1] < 5 else "dense"

    monkeypatch.setattr(auto, "_faster", faster)
    return seen


def model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Flatten(),
        nn.Linear(8 * 6 * 6, 3),
    )


def measure(**options: Any) -> dict[str, str]:
    settings: dict[str, Any] = {"block": 1, "batch": 8, "input_shape": (1, 8, 8)} | options
    return auto.measure(model(), None, lambda shapes: [0.25] * len(shapes), **settings)


EXPECTED = {"1": "native", "2": "native", "3": "native", "4": "dense"}


def test_each_kind_of_layer_is_timed_once_and_remembered(timed: list[tuple[int, ...]], cache: Path) -> None:
    assert measure() == EXPECTED
    assert timed == [(8, 4, 6, 6), (8, 4, 6, 6), (8, 8, 6, 6)]  # 1 and 2 are alike, 3 has more outputs
    assert sorted(json.loads(cache.read_text())["choices"].values()) == ["dense", "native", "native"]
    assert measure() == EXPECTED
    assert len(timed) == 3


@pytest.mark.parametrize(
    "other", [{"batch": 4}, {"block": 4}, {"input_shape": (1, 9, 9)}, {"density": 0.5}, {"threads": 2}]
)
def test_what_decides_is_asked_for(timed: list[tuple[int, ...]], other: dict[str, Any]) -> None:
    measure()
    density = other.pop("density", 0.25)
    torch.set_num_threads(other.pop("threads", 1))
    settings: dict[str, Any] = {"block": 1, "batch": 8, "input_shape": (1, 8, 8)} | other
    net = (
        model() if settings["input_shape"] == (1, 8, 8) else nn.Sequential(*model()[:5], nn.Flatten(), nn.LazyLinear(3))
    )
    auto.measure(net, None, lambda shapes: [density] * len(shapes), **settings)
    assert len(timed) == 6


def test_another_machine_measures_for_itself(timed: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    here = choices.machine()
    assert kernels.isa() in here
    assert torch.__version__ in here
    measure()
    monkeypatch.setattr(choices, "_processor", lambda: "another")
    assert choices.machine() != here
    measure()
    assert len(timed) == 6


def folder_there(file: Path) -> None:
    file.unlink()
    file.mkdir()


def link_there(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


def replaced(**entries: Any) -> Callable[[Path], None]:
    return lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | entries)) and None


def hostile(file: Path) -> None:
    held = json.loads(file.read_text())
    odd = ["fast", 3, None, ["native"], {}]
    held["choices"] = {key: odd[i % len(odd)] for i, key in enumerate(held["choices"])}
    file.write_text(json.dumps(held))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "empty": lambda file: file.write_text(""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-20]),
    "no text": lambda file: file.write_bytes(b"\xff\xfe\x00"),
    "deep": lambda file: file.write_text("[" * 200000),
    "a list": lambda file: file.write_text("[]"),
    "no choices": replaced(choices=None),
    "another format": replaced(format=99),
    "odd choices": hostile,
    "too large": lambda file: os.truncate(file, choices.LIMIT + 1),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "a folder": folder_there,
    "a link": link_there,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_measured_anew(damage: str, timed: list[tuple[int, ...]], cache: Path) -> None:
    measure()
    DAMAGE[damage](cache)
    assert measure() == EXPECTED
    assert len(timed) == 6
    assert measure() == EXPECTED
    assert len(timed) == 9 if damage == "a folder" else 6  # where nothing can be written, nothing is remembered
    assert [p.name for p in cache.parent.iterdir() if p.name.startswith(".")] == []


def test_a_cache_that_cannot_be_written_is_done_without(
    timed: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARCL_CACHE", str(tmp_path / "file" / "below"))
    assert measure() == measure() == EXPECTED
    assert len(timed) == 6


@pytest.mark.usefixtures("timed")
def test_what_others_have_measured_stays(cache: Path) -> None:
    choices.remember({"another layer": "dense"})
    measure()
    assert choices.known({"it": "another layer", "none": "unknown"}) == {"it": "dense"}
    assert len(json.loads(cache.read_text())["choices"]) == 4


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "MOST", 3)
    for i in range(5):
        choices.remember({f"layer {i}": "native"})
    assert set(choices.known({str(i): f"layer {i}" for i in range(5)})) == {"2", "3", "4"}


def test_a_learner_takes_what_is_remembered_and_records_it(timed: list[tuple[int, ...]]) -> None:
    def choice() -> dict[str, str]:
        return Learner(ConvNet(4, 1, width=8), sparsifier=SparCL(0.9), input_shape=(1, 8, 8), batch_size=8).layer_choice

    assert choice() == choice() == {"3": "dense", "6": "dense", "9": "dense"}
    assert len(timed) == 3


@pytest.mark.usefixtures("timed")
def test_long_measuring_is_told_to_observers(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    options: dict[str, Any] = {"sparsifier": SparCL(0.9), "input_shape": (1, 8, 8), "batch_size": 8}
    Learner(ConvNet(4, 1, width=8), observers=[lambda *event: told.append(event)], **options)
    assert told == []
    monkeypatch.setattr(auto, "TOLD_AFTER", -1.0)
    options["sparsifier"] = SparCL(0.9)
    Learner(ConvNet(4, 1, width=12), observers=[lambda *event: told.append(event)], **options)
    assert [(event, figures["layer"], figures["done"], figures["of"]) for event, figures in told] == [
        ("auto.measure", name, done, 3) for done, name in enumerate(("3", "6", "9"))
    ]


def test_the_command_line_says_what_it_waits_for() -> None:
    from rich.console import Console

    console = Console(record=True, width=100)
    measuring = Measuring(console)
    for seconds in (1.5, 2.0, 12.0):
        measuring("auto.measure", {"layer": "3", "done": 1, "of": 7, "seconds": seconds})
    measuring("step.end", {})
    assert console.export_text().count("timing layers, native against dense: 1 of 7 done") == 2


def test_a_real_measurement_finds_what_is_plain() -> None:
    net = nn.Sequential(nn.Linear(4, 512), nn.Linear(512, 512), nn.Linear(512, 4))
    assert auto.measure(net, None, lambda shapes: [0.01] * len(shapes), 1, 256, (4,)) == {"1": "native"}


@pytest.mark.parametrize(
    ("native", "dense", "expected"),
    [(0.1, 1.0, "native"), (1.0, 1.0, "native"), (1.2, 1.0, "native"), (1.3, 1.0, "dense"), (9.0, 1.0, "dense")],
)
@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.Conv1d(8, 8, 3), nn.Conv2d(8, 8, 3)], ids=repr)
def test_dense_is_chosen_where_it_is_faster_by_the_margin(
    layer: nn.Module, native: float, dense: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(timed: nn.Module, x: torch.Tensor) -> float:
        assert timed(x).shape[0] == len(x)
        whole = native if isinstance(timed, CompactLayer) else dense
        return whole if torch.is_grad_enabled() else whole / 3

    monkeypatch.setattr(auto, "_seconds", seconds)
    net = nn.Sequential(nn.Identity(), layer)
    assert auto.measure(net, ["1"], lambda shapes: [0.5] * len(shapes), 4, 8) == {"1": expected}


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (64, 90)])
@pytest.mark.parametrize("density", [0.001, 0.1, 0.5, 0.97, 1.0])
def test_a_layer_is_timed_with_exactly_its_active_weights(rows: int, columns: int, density: float) -> None:
    for seed in range(5):
        units = auto._drawn(rows, columns, density, torch.Generator().manual_seed(seed))
        assert units.shape == (rows, columns)
        assert int(units.sum()) == max(1, round(density * rows * columns))


def test_a_loaded_learner_asks_for_layers_as_they_are_used_and_times_nothing_again(
    timed: list[tuple[int, ...]], tmp_path: Path
) -> None:
    learner = Learner(ConvNet(3, channels=3, width=4), None, SparCL(0.75), batch_size=8, input_shape=(3, 12, 12))
    learner.save(tmp_path / "saved")
    asked = list(timed)
    assert {shape[2] for shape in asked} & {12, 6, 3}
    again = Learner.load(tmp_path / "saved")
    assert (timed, again.layer_choice) == (asked, learner.layer_choice)


@pytest.mark.parametrize(
    ("shape", "says"), [("3x8", "'3x8', not the sizes"), ([], "not the sizes"), ([3, -1], "from 1"), ([3, 1.5], "1.5")]
)
def test_an_input_shape_of_a_checkpoint_that_is_none_is_refused(shape: Any, says: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "saved")
    state = Learner(ConvNet(3, channels=3, width=4), None, SparCL(0.75), input_shape=(3, 12, 12)).checkpoint_state()
    state["settings"]["input_shape"] = shape
    store.save(0, state)
    with pytest.raises(CheckpointError, match=says):
        Learner.load(tmp_path / "saved")


def test_a_sample_too_large_to_pass_through_is_not_asked_for(timed: list[tuple[int, ...]], tmp_path: Path) -> None:
    state = Learner(ConvNet(3, channels=3, width=4), None, SparCL(0.75), input_shape=(3, 12, 12)).checkpoint_state()
    state["settings"]["input_shape"] = [3, 1 << 30, 1 << 30]
    Store(tmp_path / "saved").save(0, state)
    Learner.load(tmp_path / "saved")
    assert timed[-1][2] == auto.NOMINAL_SIDE


def test_a_model_that_cannot_be_copied_is_measured_at_nominal_sizes() -> None:
    model = ConvNet(4, 2, 8)
    model.lock = threading.Lock()
    learner = Learner(model, sparsifier=SparCL(0.5), input_shape=(2, 6, 6))
    assert set(learner.layer_choice) == {"3", "6", "9"}
