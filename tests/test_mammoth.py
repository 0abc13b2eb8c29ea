"""docs/examples/sparcl_derpp.py in a stand-in that calls it as Mammoth does: a new optimizer is asked for each task."""

import importlib.util
import sys
import types
from argparse import Namespace

import pytest
import torch
from pages import ROOT
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from sparcl.nn import ConvNet


class ContinualModel(nn.Module):
    """The part of Mammoth's base class that the example rests on."""

    def __init__(self, backbone, loss, args, transform, **_):
        super().__init__()
        self.net, self.loss, self.args, self.transform, self.device = backbone, loss, args, transform, "cpu"
        self.current_task = self.epoch_iteration = 0
        self.opt = self.get_optimizer()

    def get_optimizer(self, *_):
        return torch.optim.SGD(self.net.parameters(), lr=self.args.lr, momentum=0.9)

    def get_offsets(self, task):
        return 2 * task, 2 * task + 2

    def learn(self, loader):
        """One task, in Mammoth's order."""
        dataset = Namespace(train_loader=loader)
        self.net.train()
        self.opt = self.get_optimizer()
        self.begin_task(dataset)
        for epoch in range(self.args.n_epochs):
            self.epoch_iteration = 0
            self.begin_epoch(epoch, dataset)
            for inputs, labels in loader:
                assert self.observe(inputs, labels, inputs) > 0
                self.epoch_iteration += 1
        self.end_task(dataset)
        self.current_task += 1


class Buffer:
    """As many of the last samples as fit."""

    def __init__(self, size):
        self.size, self.kept = size, None

    def is_empty(self):
        return self.kept is None

    def add_data(self, examples, labels, logits):
        new = (examples, labels, logits)
        kept = new if self.kept is None else [torch.cat(pair) for pair in zip(self.kept, new, strict=True)]
        self.kept = [part[-self.size :] for part in kept]

    def get_data(self, size, **_):
        chosen = torch.randperm(len(self.kept[0]))[:size]
        return tuple(part[chosen] for part in self.kept)


@pytest.fixture
def example(monkeypatch):
    stand_ins = {
        "models": {},
        "models.utils": {},
        "models.utils.continual_model": {"ContinualModel": ContinualModel},
        "utils": {},
        "utils.args": {"ArgumentParser": object, "add_rehearsal_args": print},
        "utils.buffer": {"Buffer": Buffer},
    }
    for name, holds in stand_ins.items():
        module = types.ModuleType(name)
        vars(module).update(holds)
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("sparcl_derpp", ROOT / "docs" / "examples" / "sparcl_derpp.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mammoths_model_is_sparse_after_every_task_and_rehearses(example):
    torch.manual_seed(0)
    given = {"buffer_size": 20, "minibatch_size": 8, "alpha": 0.1, "beta": 0.5, "seed": 0}
    args = Namespace(**given, lr=0.05, n_epochs=2, sparsity=0.75, gradient_sparsity=0.2)
    model = example.SparclDerpp(ConvNet(6, width=8), F.cross_entropy, args, None)
    optimizer = model.opt
    masks = []
    for task in range(3):
        labels = torch.arange(80) % 2 + 2 * task
        inputs = torch.randn(80, 1, 8, 8) + labels.view(-1, 1, 1, 1)
        model.learn(DataLoader(TensorDataset(inputs, labels), batch_size=8, shuffle=True))
        layers = model.sparsifier.tdm.layers
        assert [len(layer.index) for layer in layers] == [round(layer.parameter.numel() / 4) for layer in layers]
        assert all(int((layer.parameter != 0).sum()) <= len(layer.index) for layer in layers)
        masks.append([layer.index.clone() for layer in layers])
    assert model.opt is optimizer
    assert not all(torch.equal(a, b) for a, b in zip(masks[0], masks[2], strict=True))
    assert model.replay_loss().requires_grad
