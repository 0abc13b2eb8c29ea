"""The course of a run, from its events: losses, what was computed, masks by layer; by training steps or by tasks."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparcl.report.events import StepCounter, number
from sparcl.report.records import Record

MOST_POINTS = 600
"""Of a curve; more are thinned evenly."""

Trace = list[tuple[float, float]]


@dataclass
class Course:
    """Traces hold (training steps, value).

    Attributes:
        starts: steps at which the tasks began.
        end: steps of the whole run.
        epoch_loss, step_loss: mean losses of epochs, and of every few steps.
        active: active prunable weights, percent; samples: of the task in use, percent.
        masks: at each task's end, by layer: density and overlap with the mask of the task before, percent.
    """

    starts: list[int] = field(default_factory=list)
    end: int = 0
    epoch_loss: Trace = field(default_factory=list)
    step_loss: Trace = field(default_factory=list)
    active: Trace = field(default_factory=list)
    samples: Trace = field(default_factory=list)
    masks: list[dict[str, tuple[float, float | None]]] = field(default_factory=list)

    @property
    def loss(self) -> list[tuple[float | None, float | None]]:
        """The finer of the two loss curves, with a gap (None, None) wherever a task begins: another loss is meant."""
        trace = thinned(self.step_loss if len(self.step_loss) > 2 * len(self.epoch_loss) else self.epoch_loss)
        found: list[tuple[float | None, float | None]] = []
        before = None
        for steps, value in trace:
            task = bisect_left(self.starts, steps)  # a loss is told at the end of its steps
            found += [(None, None)] if before not in (None, task) else []
            found.append((steps, value))
            before = task
        return found

    def in_tasks(self, trace: Trace) -> Trace:
        """The trace with tasks learned in place of steps, up to the last."""
        if not trace or not self.starts:  # the lines that tell of tasks may be missing
            return []
        found = [(self._task_at(steps), value) for steps, value in trace]
        return [*found, (float(len(self.starts)), found[-1][1])]

    def _task_at(self, steps: float) -> float:
        task = max(0, bisect_right(self.starts, steps) - 1)
        start, end = self.starts[task], [*self.starts[1:], self.end][task]
        return task + min(1.0, (steps - start) / max(end - start, 1))


def course(record: Record) -> Course:
    """Read a run's events; an empty course where there are none."""
    found, steps = Course(), StepCounter()
    prunable = number(record.result["sparsity"].get("prunable"))
    in_task = None
    for line in record.events():
        event, now = line["event"], float(steps(line))
        found.end = steps.total
        if event == "task.begin":
            found.starts.append(steps.total)
            if in_task := number(line.get("samples")):
                found.samples.append((now, 100.0))
        elif event in ("loss", "loss.epoch") and (loss := number(line.get("loss"))) is not None:
            (found.step_loss if event == "loss" else found.epoch_loss).append((now, loss))
        elif event == "ddr.remove" and in_task and (kept := number(line.get("kept"))) is not None:
            found.samples.append((now, 100 * kept / in_task))
        elif event == "masks":
            found.masks.append(_layers(line))
        elif prunable and event != "dgm.choose" and (active := number(line.get("active"))) is not None:
            found.active.append((now, 100 * active / prunable))
    return found


def _layers(line: Mapping[str, Any]) -> dict[str, tuple[float, float | None]]:
    """Density and overlap, percent, of the layers that a `masks` event tells of."""
    layers = line.get("layers")
    found: dict[str, tuple[float, float | None]] = {}
    for name, told in layers.items() if isinstance(layers, dict) else ():
        if not isinstance(told, dict):
            continue
        active, weights, overlap = (number(told.get(key)) for key in ("active", "weights", "overlap"))
        if active is not None and weights:
            found[name] = (100 * active / weights, None if overlap is None else 100 * overlap)
    return found


def thinned(trace: Trace) -> Trace:
    """At most `MOST_POINTS` of a curve's points, evenly spaced, the last among them."""
    stride = -(-len(trace) // MOST_POINTS)
    return trace if stride <= 1 else [*trace[:-1:stride], trace[-1]]
