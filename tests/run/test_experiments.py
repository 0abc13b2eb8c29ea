"""The experiments that are committed can be run: every one of their runs is allowed."""

from __future__ import annotations

from pathlib import Path

from sparcl.run import sweep

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def test_the_small_table_begins_with_its_main_rows_seed_by_seed() -> None:
    experiments = [cell.experiment for cell in sweep.read(EXPERIMENTS / "table1-small.toml")]
    first = experiments[:42]
    assert [e.seed for e in first] == [0] * 14 + [1] * 14 + [2] * 14
    assert {e.buffer_size for e in first} == {None, 200}
    dense = {e.method for e in first if e.sparsifier == "dense"}
    assert dense == {"finetune", "joint", "er", "derpp"}
    assert {e.sparsity for e in first if (e.method, e.sparsifier) == ("derpp", "sparcl")} == {0.75, 0.90, 0.95}
    assert {e.sparsifier for e in first} == {"dense", "sparcl", "snip", "rigl"}
    assert {(e.limit_per_class, e.width) for e in experiments} == {(200, 32)}
    fewer = [e for e in experiments if e.epochs != 5]  # as many steps as DDR leaves
    assert [(e.epochs, e.sample_removal) for e in fewer] == [(4, 0.0)] * 3


def test_the_full_table_is_the_published_protocol() -> None:
    experiments = [cell.experiment for cell in sweep.read(EXPERIMENTS / "table1.toml")]
    assert {(e.stream, e.epochs, e.width, e.model) for e in experiments} == {
        ("seq-cifar10", 50, 64, "resnet18"),
        ("seq-tinyimg", 100, 64, "resnet18"),
    }
    assert {e.limit_per_class for e in experiments} == {None}
    for stream in ("seq-cifar10", "seq-tinyimg"):
        for method in ("er", "derpp"):
            rows = [e for e in experiments if (e.stream, e.method, e.preset) == (stream, method, None)]
            sparse = {(e.sparsity, e.buffer_size, e.seed) for e in rows if e.sparsifier == "sparcl"}
            assert sparse == {(s, b, seed) for s in (0.75, 0.9, 0.95) for b in (200, 500) for seed in range(5)}
            assert len([e for e in rows if e.sparsifier == "dense"]) == 2 * 5
