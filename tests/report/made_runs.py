"""Run directories made by hand, with the fields that a run writes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "stream": "seq-cifar10",
    "method": "derpp",
    "sparsifier": "sparcl",
    "sparsity": 0.9,
    "pattern": "unstructured",
    "buffer_size": 200,
    "epochs": 3,
    "lr": 0.03,
    "sample_removal": 0.3,
    "gradient_sparsity": 0.2,
    "seed": 0,
}
RESULT: dict[str, Any] = {
    "benchmark": "seq-cifar10",
    "method": "derpp",
    "sparsifier": "sparcl",
    "backend": {"name": "reference", "reference": ["layer"], "native": []},
    "seed": 0,
    "model_sha256": "0" * 64,
    "class_il": 50.0,
    "task_il": 90.0,
    "forgetting": 10.0,
    "backward_transfer": -10.0,
    "forward_transfer": 0.0,
    "accuracy_matrix": {"class_il": [[80.0, 0.0], [40.0, 60.0]], "task_il": [[80.0, 50.0], [85.0, 95.0]]},
    "sparsity": {"weights": 0.9, "gradients": 0.92, "prunable": 1000, "total": 1100},
    "samples": {"seen": 700, "removed": 300},
    "flops": {"executed": 1.0e12, "paper": 0.5e12, "dense": 4.0e12},
    "seconds": {"train": 12.0, "evaluate": 1.0, "total": 13.5},
    "memory": {
        "peak_rss_bytes": 300 * 2**20,
        "parameter_bytes": 2**20,
        "index_bytes": 2**19,
        "gradient_bytes": 2**19,
        "optimizer_bytes": 0,
        "buffer_bytes": 2**20,
    },
    "environment": {"cpu": "Some CPU", "threads": 1, "torch": "2", "sparcl": "0.1.0", "python": "3", "device": "cpu"},
}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of `base` with `changes`, written `section__name` for a nested one; None removes a config's key."""
    made = copy.deepcopy(base)
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (made[section] if section else made)[name] = value
    return made


def make_run(
    path: Path, config: dict[str, Any] | None = None, events: list[dict[str, Any]] | None = None, **result: Any
) -> Path:
    """A finished run; the names of its config are carried over to its result."""
    settings = {k: v for k, v in merged(CONFIG, config or {}).items() if v is not None}
    same = {"benchmark": settings["stream"], **{k: settings[k] for k in ("method", "sparsifier", "seed")}}
    path.mkdir(parents=True)
    lines = [f"{k} = {json.dumps(v)}" for k, v in settings.items()]
    (path / "config.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (path / "result.json").write_text(json.dumps(merged({**RESULT, **same}, result)), encoding="utf-8")
    if events is not None:
        (path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events), encoding="utf-8")
    return path


PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


def course_of(tasks: int, layers: list[str], epochs: int = 2, steps: int = 10) -> list[dict[str, Any]]:
    """The events of a run of `tasks` tasks, with every kind that the page draws."""
    events: list[dict[str, Any]] = [{"event": "run.begin", "task": 0, "epoch": 0, "step": 0, "tasks": tasks}]
    for t in range(tasks):
        where = {"task": t, "epoch": 0, "step": 0}
        events.append({"event": "task.begin", **where, "samples": 200})
        for e in range(epochs):
            where = {"task": t, "epoch": e, "step": 0}
            events.append({"event": "epoch.begin", **where, "steps": steps})
            events.append({"event": "tdm.update", **where, "step": 5, "active": 100 + 10 * (e == 0)})
            events.append({"event": "ddr.remove", **where, "step": 5, "removed": 20, "kept": 180 - 20 * e})
            events.append({"event": "epoch.end", **where, "step": steps})
            events.append({"event": "loss.epoch", **where, "step": steps, "loss": 2.0 / (1 + e), "steps": steps})
        end = {"task": t, "epoch": epochs - 1, "step": steps}
        told = {name: {"active": 10 + t, "weights": 100, "overlap": 0.8 if t else None} for name in layers}
        events.append({"event": "masks", **end, "layers": told})
        accuracies = [90.0 - 5 * (t - j) if j <= t else 0.0 for j in range(tasks)]
        events.append({"event": "evaluate", **end, "class_il": accuracies, "task_il": accuracies, "seen": t + 1})
    return [*events, {"event": "run.end", **events[-1], "class_il": 50.0, "task_il": 90.0}]


def rich_run(
    path: Path, config: dict[str, Any] | None = None, tasks: int = 5, names: list[str] | None = None, **result: Any
) -> Path:
    """A run that left all that the page can show; `names` of its classes, two a task."""
    names = names or [f"class {i}" for i in range(2 * tasks)]
    size = len(names)
    rows = [[90.0 - 5 * (t - j) if j <= t else 0.0 for j in range(tasks)] for t in range(tasks)]
    confusion = [[50 if i == j else 2 for j in range(size)] for i in range(size)]
    accuracy = [100 * 50 / (50 + 2 * (size - 1))] * size
    shown = [{"id": i, "label": names[0], "image": PICTURE} for i in range(12)]
    told = {
        "accuracy_matrix": {"class_il": rows, "task_il": rows},
        "per_class": {"scenario": "class_il", "names": names, "accuracy": accuracy, "confusion": confusion},
        "flops__phases": {"forward": 4e11, "backward": 4e11, "importance": 2e11, "other": 0},
        "seconds__importance": 2.0,
        **result,
    }
    layers = [f"layer{i}.0.conv1" for i in range(1, 5)] + ["classifier"]
    make_run(path, config, course_of(tasks, layers), **told)
    split = {"removed": {"count": 60, "shown": shown}, "kept": {"count": 140, "shown": shown}}
    samples = {"tasks": [{"task": t, **split} for t in range(tasks)]}
    (path / "samples.json").write_text(json.dumps(samples), encoding="utf-8")
    return path
