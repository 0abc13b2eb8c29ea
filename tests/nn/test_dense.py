"""`dense_model`: PyTorch's own layers, the same function, and the original untouched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from toys import Net, blobs

from sparcl import Learner, kernels
from sparcl.nn import build
from sparcl.nn.convert import dense_state_dict
from sparcl.sparsity import SparCL

BACKENDS = ["reference", pytest.param("native", marks=pytest.mark.skipif(not kernels.available(), reason="no engine"))]


def user_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(2, 8, 3, padding="same"), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, groups=2, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 1, 1)),
        *(nn.AvgPool2d(2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)),
    )


MODELS = {
    "net": lambda: Net(dropout=0.2),
    "user": user_net,
    "resnet18": lambda: build("resnet18", 4, (2, 6, 6), 4),
    "convnet": lambda: build("convnet", 4, (2, 6, 6), 4),
    "mlp": lambda: build("mlp", 4, (2, 6, 6), 16),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_trained_model_becomes_plain_and_answers_the_same(backend: str, kind: str) -> None:
    model = MODELS[kind]()
    before = {name: type(module) for name, module in model.named_modules()}
    learner = Learner(model, sparsifier=SparCL(0.7), backend=backend, epochs=1, batch_size=8)
    task = blobs().tasks[0]
    learner.learn(task)
    x = task.test.inputs[:5]
    own, expected = dense_state_dict(learner.model), learner.model(x)
    types = {name: type(module) for name, module in learner.model.named_modules()}

    dense = learner.dense_model()
    assert {name: type(module) for name, module in dense.named_modules()} == before
    assert not dense.training
    assert not any(module._forward_hooks or "_sparse_layer" in vars(module) for module in dense.modules())
    assert list(dense.state_dict()) == list(own)
    assert all(torch.equal(tensor, own[name]) for name, tensor in dense.state_dict().items())
    torch.testing.assert_close(dense(x), expected, atol=1e-5, rtol=1e-5)
    fresh = MODELS[kind]().eval()
    fresh.load_state_dict(dense.state_dict())
    assert torch.equal(fresh(x), dense(x))

    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.zero_()
    assert torch.equal(learner.model(x), expected), "the copy shares memory with the model"
    assert {name: type(module) for name, module in learner.model.named_modules()} == types
    learner.learn(blobs().tasks[1])


def test_a_head_that_grew_is_an_ordinary_one() -> None:
    from sparcl import streams

    torch.manual_seed(0)
    x = torch.randn(12, 2, 6, 6)
    learner = Learner(Net(), classes=(), backend="reference", batch_size=4)
    learner.learn(streams.make_task(x, ["a", "b", "c"] * 4))
    dense = learner.dense_model()
    assert type(dense.get_submodule("classifier")) is nn.Linear
    torch.testing.assert_close(dense(x), learner.model(x))
    torch.export.export(dense, (x,))


def test_hooks_and_frozen_weights_stay() -> None:
    if not kernels.available():
        pytest.skip("no engine")
    from sparcl.nn.convert import to_native
    from sparcl.nn.dense import dense_model

    model = Net()
    model.conv.weight.requires_grad_(False)
    native = to_native(copy.deepcopy(model), ["hidden", "grouped"])
    calls: list[int] = []
    native.get_submodule("hidden").register_forward_hook(lambda *_: calls.append(1))
    dense = dense_model(native)
    assert [p.requires_grad for p in dense.parameters()] == [p.requires_grad for p in model.parameters()]
    dense(torch.zeros(1, 2, 6, 6))
    assert calls == [1]
