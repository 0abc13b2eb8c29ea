"""What the walks through the commands share: the words of every command, and what a folder holds."""

from __future__ import annotations

from pathlib import Path

from sparcl.run import bench

QUICK = ["--epochs", "1", "--width", "4", "--limit-per-class", "20", "--threads", "1", "--backend", "reference"]
RUN = ["run", "seq-digits", *QUICK]
MEASURED = ("block", 0.9, 2.0, "nchw", 1.0, 2.0, 8.0, 10**8, 10**7, "avx2", 1, 32, 4, "mlp")
ROW = dict(
    zip(
        (
            *("pattern", "sparsity", "dense_ms", "dense_variant", "native_ms", "speedup", "theoretical_gain"),
            *("peak_dense_bytes", "peak_native_bytes", "isa", "threads", "batch", "width", "model"),
        ),
        MEASURED,
        strict=True,
    )
)
"""What a measurement would give; measuring takes half a minute."""
MEASURE = bench.measure_all


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*") if p.name != ".lock"}


def words_of(run: Path, to: Path, samples: Path) -> dict[str, list[str]]:
    """Every command that reads a run or writes a file, with the files that it leaves."""
    return {
        "predict": ["predict", str(run), str(samples)],
        "predict csv": ["predict", str(run), str(samples), "--format", "csv"],
        "predict json": ["predict", str(run), str(samples), "--format", "json"],
        "export": ["export", str(run), "--out", str(to / "netz.safetensors")],
        "export device": ["export", str(run), "--format", "device", "--out", str(to / "netz.sparcl")],
        "pack": ["pack", "seq-digits", "--out", str(to / "proben.sparcl")],
        "report": ["report", str(run)],
        "report csv": ["report", str(run), "--format", "csv", "--out", str(to / "bericht.csv")],
        "report html": ["report", str(run), "--format", "html", "--out", str(to / "bericht.html")],
        "watch": ["watch", str(run)],
        "info": ["info"],
        "info json": ["info", "--json"],
        "bench": ["bench", "--json", str(to / "zeiten.json")],
    }
