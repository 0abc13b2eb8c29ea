"""The README's Python runs as it stands."""

import torch
import torch.nn.functional as F
from pages import ROOT, blocks
from torch.utils.data import DataLoader, TensorDataset

from sparcl import nn
from sparcl.cost.protocol import published_rows

README = (ROOT / "README.md").read_text()
FIRST, LOOP, BUDGET, UNANNOUNCED = blocks(ROOT / "README.md", "python")


def test_the_flops_are_what_the_ledger_says():
    """As `sparcl info --flops` prints them."""
    names = {"er": "ER", "derpp": "DER++"}
    for row in published_rows():
        share = "100 %" if row.sparsity is None else f"{row.executed / row.dense:.1%}".replace("%", " %")
        name = names[row.method] if row.sparsity is None else f"SparCL-{names[row.method]} {row.sparsity:.2f}"
        figures = [f"{row.paper / 1e15:.2f}", f"{row.published / 1e15:.1f}", f"{row.executed / 1e15:.2f}", share]
        assert f"| {name.replace('0.', '.')} | {' | '.join(figures)} |" in README


def test_the_first_example_learns_and_is_saved(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(FIRST, names)
    assert "mean of 5 tasks" in capsys.readouterr().out
    assert (tmp_path / "checkpoint" / "latest").exists()


def test_the_loop_of_ones_own_keeps_the_network_sparse():
    torch.manual_seed(0)
    model = nn.ConvNet(4, width=8)
    data = [TensorDataset(torch.randn(48, 1, 8, 8), torch.randint(2 * t, 2 * t + 2, (48,))) for t in range(2)]
    names = {
        "sparcl": __import__("sparcl"),
        "F": F,
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-2),
        "loaders": [DataLoader(d, batch_size=8, shuffle=True) for d in data],
    }
    exec(LOOP, names)
    for layer in names["tdm"].layers:
        assert len(layer.index) == round(0.1 * layer.parameter.numel())
        assert int((layer.parameter != 0).sum()) <= len(layer.index)


def test_a_budget_of_seconds_is_kept():
    names: dict = {}
    exec(FIRST.split("\n\n")[0], names)  # its imports
    exec(BUDGET, names)
    learner = names["learner"]
    assert learner.budget.kind == "seconds"
    assert learner.steps == learner.pace[0][-1] > 1


def test_classes_that_come_unannounced_are_known_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(FIRST.split("\n\n")[0], names)
    names["monday"], names["tuesday"], names["frames"] = torch.randn(3, 8, 3, 16, 16)
    exec(UNANNOUNCED, names)
    assert names["learner"].classes.names == ["cup", "hand", "dog"]
    assert set(names["answer"].labels) <= {"cup", "hand", "dog"}
