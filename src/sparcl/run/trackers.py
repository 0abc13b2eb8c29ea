"""`--track`: a run's metrics, as they come, for TensorBoard, Weights & Biases, or a CSV file.

They follow events.jsonl, line by line, and hold nothing that it does not: a tracker may be added or left out at a
resume, and changes nothing in the run.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sparcl import regular
from sparcl.errors import ConfigError, one_line, unknown
from sparcl.report.events import StepCounter, metrics, number, parse

Row = tuple[int, float, dict[str, float]]
"""Training steps and seconds so far, and metrics by name."""


class Tracker(Protocol):
    """Takes metrics; made with (run directory, settings, what a resumed run has told already)."""

    def log(self, row: Row) -> None:
        """One line's metrics."""

    def close(self) -> None:
        """All is told."""


class CSV:
    """`metrics.csv` in the run directory: step, seconds, metric, value; a resumed run writes it anew."""

    def __init__(self, directory: Path, settings: Mapping[str, Any], told: Sequence[Row]) -> None:
        del settings
        path = directory / KEPT["csv"]
        try:
            self._file = io.TextIOWrapper(regular.open_to_add(path, anew=True), encoding="utf-8", newline="")
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(("step", "seconds", "metric", "value"))
        for row in told:
            self.log(row)

    def log(self, row: Row) -> None:
        step, seconds, values = row
        self._writer.writerows((step, seconds, name, value) for name, value in values.items())
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Scalars under `tensorboard/` in the run directory; after a resume those beyond its step are void."""

    def __init__(self, directory: Path, settings: Mapping[str, Any], told: Sequence[Row]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        again = told[-1][0] + 1 if told else None
        self._writer: Any = SummaryWriter(str(directory / "tensorboard"), purge_step=again)
        if again is None:
            self._writer.add_text("settings", "\n".join(f"    {k} = {v}" for k, v in settings.items()), 0)

    def log(self, row: Row) -> None:
        step, _, values = row
        for name, value in values.items():
            self._writer.add_scalar(name.replace(" ", "_"), value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A Weights & Biases run under `wandb/` in the run directory.

    Offline, so that nothing leaves the machine: `wandb sync` sends it later, WANDB_MODE=online sends it at once.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any], told: Sequence[Row]) -> None:
        del told  # it keeps what it has, and takes no step twice
        import wandb

        mode: Any = os.environ.get("WANDB_MODE", "offline")
        kept = directory / "wandb" / "id"
        identity = os.urandom(8).hex()
        try:
            if os.path.lexists(kept):
                identity = regular.read(kept, 64, ours=True).decode("ascii").strip()
            kept.parent.mkdir(exist_ok=True)
            with regular.open_to_add(kept, anew=True) as file:
                file.write(f"{identity}\n".encode())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{kept} cannot be used: {one_line(error)}") from None
        try:
            self._run: Any = self._begun(wandb, directory, settings, identity, mode)
        except wandb.Error as error:
            raise ConfigError(f"--track wandb: {one_line(error)}") from None
        self._run.define_metric("*", step_metric="step")

    @staticmethod
    def _begun(wandb: Any, directory: Path, settings: Mapping[str, Any], identity: str, mode: str) -> Any:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "sparcl"),
            name=directory.name,
            dir=str(directory),
            config=dict(settings),
            id=identity,
            resume="allow",
            mode=mode,
            settings=wandb.Settings(silent=True, console="off", disable_git=True),
        )

    def log(self, row: Row) -> None:
        step, seconds, values = row
        self._run.log({"step": step, "seconds": seconds, **values})

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, type[CSV] | type[TensorBoard] | type[WandB]] = {
    "csv": CSV,
    "tensorboard": TensorBoard,
    "wandb": WandB,
}


KEPT = {"csv": "metrics.csv", "tensorboard": "tensorboard", "wandb": "wandb"}
"""What each leaves in the run directory."""

EVENTS, MAX_EVENTS = "events.jsonl", 4 << 30
"""What is told, and the most bytes of it: a larger one is no run's."""


def check(names: Iterable[str]) -> None:
    """Refuse a tracker that is unknown or whose package is missing (ConfigError)."""
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(unknown("tracker", name, TRACKERS))
        if name != "csv" and importlib.util.find_spec(name) is None:
            raise ConfigError(f"--track {name} needs {name}: pip install 'sparcl-edge[{name}]'")


class Trackers:
    """Follows events.jsonl on behalf of the trackers `names`.

    Args:
        names: of `TRACKERS`; each counts once.
        directory: of the run.
        settings: of the run, as plain values.
        kept: what events.jsonl holds already, where a run goes on.
    """

    def __init__(self, names: Sequence[str], directory: Path, settings: Mapping[str, Any], kept: bytes) -> None:
        check(names)
        self._steps = StepCounter()
        lines = [line for text in kept.splitlines() if (line := parse(text)) is not None]
        told = [row for line in lines if (row := self._row(line)) is not None]
        self._trackers: list[Tracker] = [TRACKERS[name](directory, settings, told) for name in dict.fromkeys(names)]

    def __call__(self, line: dict[str, Any]) -> None:
        """A line was written."""
        if (row := self._row(line)) is not None:
            for tracker in self._trackers:
                tracker.log(row)

    def _row(self, line: dict[str, Any]) -> Row | None:
        step, values = self._steps(line), metrics(line)
        return (step, number(line.get("seconds")) or 0.0, values) if values else None

    def close(self) -> None:
        """All is told."""
        for tracker in self._trackers:
            tracker.close()


def tell_again(names: Sequence[str], directory: Path, settings: Mapping[str, Any]) -> list[str]:
    """Tell the trackers among `names` that have kept nothing of a finished run what its events.jsonl holds; who was.

    Args:
        names: of `TRACKERS`.
        directory: of the run.
        settings: of the run, as plain values.

    Raises:
        ConfigError: events.jsonl cannot be read, or a tracker cannot write.
    """
    told = [name for name in dict.fromkeys(names) if not os.path.lexists(directory / KEPT[name])]
    if not told:
        return []
    try:
        content = regular.read(directory / EVENTS, MAX_EVENTS, ours=True)
    except OSError as error:
        raise ConfigError(f"{directory / EVENTS} cannot be read: {error.strerror}") from None
    follower = Trackers(told, directory, settings, b"")
    for text in content.splitlines():
        if (line := parse(text)) is not None:
            follower(line)
    follower.close()
    return told
