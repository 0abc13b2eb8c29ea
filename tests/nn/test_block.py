"""The fused residual block: what it computes, and who still sees every layer."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nn.native import assert_close, needs_native, random_index
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparcl import kernels
from sparcl.errors import ConfigError
from sparcl.kernels.layout import to_batch_last
from sparcl.nn import convert, resnet18
from sparcl.nn.compact import CompactConv2d
from sparcl.nn.norm import BatchLastNorm2d
from sparcl.nn.resnet import BasicBlock
from sparcl.sparsity.static import Static

pytestmark = needs_native

LAYERS = ("conv1", "bn1", "conv2", "bn2", "shortcut", "shortcut.0", "shortcut.1")


CONVOLUTIONS = ["conv1", "conv2"]


def native_block(inputs: int = 4, outputs: int = 4, stride: int = 1, dense: tuple[str, ...] = ()) -> BasicBlock:
    """Half of the weights are active; the convolutions named in `dense` keep all."""
    block = BasicBlock(inputs, outputs, stride)
    convert.to_native(block, CONVOLUTIONS, dict.fromkeys(dense, "dense"))
    block._forward_hooks.clear()  # the result stays batch-last, as in a network
    for layer in block.children():
        if isinstance(layer, CompactConv2d):
            layer.set_index(random_index(layer.shape, 0.5, torch.default_generator))
    return block


def ignore(module: nn.Module, inputs: object, output: object) -> None:
    del module, inputs, output


def one_by_one(model: nn.Module) -> nn.Module:
    """A copy whose blocks are watched, and so go layer by layer."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, BasicBlock):
            module.conv1.register_forward_hook(ignore)
    return model


def is_fused(y: Tensor) -> bool:
    return y.grad_fn is not None and y.grad_fn.name() == "_ChainBackward"


def trained(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
    """Result, gradients and buffers of a copy after two passes."""
    model = copy.deepcopy(model)
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    for _ in range(2):
        y = model(x)
        loss(y).backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters()), *model.buffers()]


def assert_same(ours: list[Tensor | None], theirs: list[Tensor | None]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_block_gives_the_bits_of_its_layers(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    inputs, outputs, stride = data.draw(st.sampled_from([(4, 4, 1), (4, 8, 1), (4, 8, 2), (4, 4, 2)]))
    block = native_block(inputs, outputs, stride, data.draw(st.sampled_from([(), ("conv1",), ("conv1", "conv2")])))
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(data.draw(st.booleans()))
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(data.draw(st.sampled_from([True, True, False])))
    x = to_batch_last(torch.randn(data.draw(st.sampled_from([1, 7, 32, 33])), inputs, 6, 5))
    assert_same(*(trained(model, x, lambda y: y.square().sum()) for model in (block, one_by_one(block))))
    assert is_fused(block(x.requires_grad_()))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_a_block_matches_float64(stride: int, training: bool) -> None:
    torch.manual_seed(0)
    block = BasicBlock(4, 4, stride).train(training)
    oracle = copy.deepcopy(block).double()
    convert.to_native(block, CONVOLUTIONS)
    x = torch.randn(12, 4, 7, 6, requires_grad=True)
    x64 = x.detach().double().requires_grad_()
    y, y64 = block(x), oracle(x64)
    gradient = torch.randn(y.shape)
    y.backward(gradient)
    y64.backward(gradient.double())
    assert_close(y, y64)
    assert_close(x.grad, x64.grad)
    for ours, theirs in zip(block.parameters(), oracle.parameters(), strict=True):
        assert_close(ours.grad.view(theirs.shape), theirs.grad)
    for name, expected in oracle.state_dict().items():
        assert_close(convert.dense_state_dict(block)[name], expected)


def test_a_network_gives_the_bits_of_its_layers_and_the_results_of_the_reference() -> None:
    torch.manual_seed(0)
    model = resnet18(10, width=8)
    reference = copy.deepcopy(model)
    convert.to_native(model)
    x, labels = torch.randn(8, 3, 16, 16), torch.randint(0, 10, (8,))

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels)

    assert_close(model(x), reference(x))
    assert_close(model.eval()(x), reference.eval()(x))
    model.train()
    Static(0.7).attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert_same(trained(model, x, loss), trained(one_by_one(model), x, loss))
    with torch.no_grad():
        assert torch.equal(model.eval()(x), one_by_one(model)(x))


def nodes(y: Tensor) -> int:
    """How many of the fused operations autograd knows in the graph of `y`."""
    seen, todo = set(), [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [before for before, _ in node.next_functions]
    return sum(node.name() == "_ChainBackward" for node in seen)


def native_resnet() -> nn.Module:
    torch.manual_seed(0)
    model = convert.to_native(resnet18(10, width=8))
    Static(0.7).attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    return model


def test_a_network_is_one_operation() -> None:
    model, x = native_resnet(), torch.randn(4, 3, 16, 16)
    assert nodes(model(x)) == 1
    assert nodes(model.eval()(x)) == 1
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert model(x).grad_fn is None
    model.fc.requires_grad_()
    assert nodes(model(x)) == 0
    model.layer4[1].bn2.requires_grad_()
    assert nodes(model(x)) == 1


class OwnBlock(BasicBlock):
    """Of a user's."""


def as_own(block: nn.Module) -> None:
    block.__class__ = OwnBlock


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda model: model.layer2.register_forward_hook(ignore), 8),
        (lambda model: model.layer2[1].register_forward_hook(ignore), 8),
        (lambda model: model.layer2[1].conv2.register_forward_pre_hook(lambda *_: None), 7),
        (lambda model: model.avgpool.register_full_backward_hook(ignore), 8),
        (lambda model: model.bn1.register_full_backward_pre_hook(lambda *_: None), 8),
        (lambda model: setattr(model, "avgpool", nn.AdaptiveAvgPool2d(1)), 8),
        (lambda model: setattr(model.bn1, "momentum", None), 8),
        (lambda model: as_own(model.layer3[0]), 8),
        (lambda model: model.layer3.append(nn.Identity()), 8),
        (lambda model: setattr(model, "layer4", model.layer4[0]), 7),
        (lambda model: setattr(model.layer1, "forward", model.layer1[0].forward), 7),
        (lambda model: model.fc.register_forward_pre_hook(lambda *_: None), 1),
    ],
)
def test_a_network_that_is_watched_or_not_the_usual_goes_block_by_block(
    change: Callable[[nn.Module], object], left: int
) -> None:
    model, x = native_resnet(), torch.randn(4, 3, 16, 16)
    change(model)
    y = model(x)
    assert nodes(y) == left
    assert torch.equal(y, one_by_one(model)(x))


def test_a_network_used_twice_in_one_graph_and_under_a_checkpoint() -> None:
    model, x, other = native_resnet(), torch.randn(4, 3, 16, 16), torch.randn(6, 3, 16, 16)

    def gradients(model: nn.Module, forward: Callable[[Tensor], Tensor]) -> list[Tensor]:
        first, second = forward(x), forward(other)
        return list(torch.autograd.grad(first.square().sum() + second.square().sum(), list(model.parameters())))

    layers, recomputed = one_by_one(model), copy.deepcopy(model)
    ours, theirs = gradients(model, model), gradients(layers, layers)
    for one, expected in zip(ours, theirs, strict=True):
        assert_close(one, expected)
    again = gradients(recomputed, lambda x: checkpoint(recomputed, x, use_reentrant=False))
    assert_same(ours, again)


def test_a_network_in_inference_mode_and_with_other_parameters_for_one_call() -> None:
    model, x = native_resnet().eval(), torch.randn(4, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(model(x), one_by_one(model)(x))
    doubled = {name: 2 * parameter for name, parameter in model.named_parameters()}
    y = torch.func.functional_call(model, doubled, (x,))
    for parameter in model.parameters():
        parameter.data *= 2
    assert torch.equal(y, model(x))


def test_a_network_without_images_and_one_that_cannot_train_on_one_value() -> None:
    model = native_resnet()
    assert model.eval()(torch.randn(0, 3, 16, 16)).shape == (0, 10)
    model.train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match="more than one value"):
        model(torch.randn(1, 3, 8, 8))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_same_bits_with_one_thread_and_two() -> None:
    torch.manual_seed(0)
    block, x = native_block(8, 16, 2), to_batch_last(torch.randn(33, 8, 9, 9))
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(trained(block, x, lambda y: y.square().sum()))
    torch.set_num_threads(1)
    assert_same(*results)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_a_layer_with_a_hook_is_called_and_the_result_unchanged(name: str, kind: str) -> None:
    torch.manual_seed(0)
    block, x = native_block(4, 8, 2), to_batch_last(torch.randn(7, 4, 6, 6, requires_grad=True))
    watched, calls = copy.deepcopy(block), []
    register = getattr(watched.get_submodule(name), f"register_{kind}_hook")
    handle = register(lambda *arguments: calls.append(len(arguments)))
    y = watched(x)
    y.square().sum().backward()
    assert calls
    assert not is_fused(y)
    assert torch.equal(y, block(x))
    handle.remove()
    assert is_fused(watched(x))


def test_a_global_hook_sees_every_layer() -> None:
    block, seen = native_block(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        block(torch.randn(4, 4, 5, 5))
    finally:
        handle.remove()
    assert [module for module in block.children() if module not in seen] == []


@pytest.mark.parametrize(
    "change",
    [
        lambda block: setattr(block.bn1, "momentum", None),
        lambda block: setattr(block, "conv1", nn.Conv2d(4, 8, 3, 2, 1, bias=False)),
        lambda block: setattr(block, "bn2", nn.BatchNorm2d(8)),
        lambda block: setattr(block, "bn1", BatchLastNorm2d.of(nn.BatchNorm2d(8, track_running_stats=False))),
        lambda block: setattr(block.conv2, "bias", nn.Parameter(torch.randn(8))),
        lambda block: setattr(block.conv2, "forward", lambda x: 2 * x),
        lambda block: block.shortcut.append(nn.Identity()),
        lambda block: setattr(block, "shortcut", nn.Conv2d(4, 8, 1, 2)),
        lambda block: nn.utils.parametrize.register_parametrization(block.bn2, "weight", nn.Tanh()),
    ],
)
def test_what_the_fused_operation_has_not_goes_layer_by_layer(change: Callable[[BasicBlock], object]) -> None:
    torch.manual_seed(0)
    block, x = native_block(4, 8, 2), torch.randn(7, 4, 6, 6, requires_grad=True)
    assert is_fused(block(x))
    change(block)
    y = block(x)
    assert not is_fused(y)
    assert torch.equal(y, one_by_one(block)(x))


def test_only_chosen_weights_have_a_gradient_and_are_computed() -> None:
    torch.manual_seed(0)
    block, x = native_block(), to_batch_last(torch.randn(6, 4, 5, 5))
    layers = [block.conv1, block.conv2]
    block(x).square().sum().backward()
    every = [layer.parameter.grad.clone() for layer in layers]
    chosen = [torch.rand(len(gradient)) < 0.5 for gradient in every]
    for layer, those in zip(layers, chosen, strict=True):
        layer.set_chosen(those)
        layer.parameter.grad = None
    kernels.reset_counters()
    y = block(x)
    assert is_fused(y)
    y.square().sum().backward()
    for layer, those, whole in zip(layers, chosen, every, strict=True):
        assert_close(layer.parameter.grad, whole.masked_fill(~those, 0.0))
    assert kernels.counters()["weight_gradient"] == int(sum(map(torch.sum, chosen))) * 6 * 5 * 5
    assert kernels.counters()["input_gradient"] == len(block.conv2.values) * 6 * 5 * 5  # x has no gradient


def test_used_twice_in_one_graph_sums_both_gradients() -> None:
    torch.manual_seed(0)
    block, x = native_block(), to_batch_last(torch.randn(5, 4, 6, 6))
    block.conv2, block.bn2 = block.conv1, block.bn1  # and within itself
    twice = nn.Sequential(block, block)
    ours, theirs = (trained(model, x, lambda y: y.square().sum()) for model in (twice, one_by_one(twice)))
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other)
    assert int(ours[-1]) == 8  # batches


def test_a_second_derivative_and_a_change_in_place_are_refused() -> None:
    block, x = native_block(), to_batch_last(torch.randn(5, 4, 6, 6)).requires_grad_()
    (gradient,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
    for saved in ("x", "weight", "values"):
        y = block(x)
        with torch.no_grad():
            {"x": x, "weight": block.bn1.weight, "values": block.conv2.values}[saved].mul_(1.5)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_the_result_may_be_changed_in_place() -> None:
    """The way back reads its signs, which are kept apart."""
    block, x = native_block(), to_batch_last(torch.randn(5, 4, 6, 6)).requires_grad_()
    (gradient,) = torch.autograd.grad((block(x) * 2.0 - 3.0).sum(), x)
    y = block(x)
    (changed,) = torch.autograd.grad(y.mul_(2.0).sub_(3.0).sum(), x)
    assert torch.equal(changed, gradient)


def test_another_dtype_is_refused_in_one_line() -> None:
    for x, message in [(torch.ones(4, 4, 5, 5).double(), "float32"), (torch.ones(4, 3, 5, 5), "channels")]:
        with pytest.raises(ConfigError, match=message) as refused:
            native_block()(x)
        assert "\n" not in str(refused.value)
