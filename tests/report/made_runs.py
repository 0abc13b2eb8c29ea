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
