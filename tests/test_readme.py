"""The README's Python runs as it stands."""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from sparcl import nn

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text("utf-8"), re.DOTALL)


def test_the_first_example_learns_and_is_saved(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(BLOCKS[0], names)
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
    exec(BLOCKS[1], names)
    for layer in names["tdm"].layers:
        assert len(layer.index) == round(0.1 * layer.parameter.numel())
        assert int((layer.parameter != 0).sum()) <= len(layer.index)
