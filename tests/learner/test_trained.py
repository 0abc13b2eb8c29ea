"""What is exchanged, appended, frozen or unfrozen after the Learner was made: it trains, stays, or is named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import Net, adam, blobs, make_learner

from sparcl import DGM, TDM, Learner, SparCL, kernels
from sparcl.errors import CheckpointError, ConfigError
from sparcl.methods import DER, EWC, METHODS, DERpp
from sparcl.nn import ConvNet
from sparcl.sparsity import SET, SNIP, RigL, Static

NATIVE = pytest.mark.skipif(not kernels.available(), reason="the compiled part is missing")
BACKENDS = ["reference", pytest.param("native", marks=NATIVE)]
PRUNING: list[Callable[[], Any]] = [
    lambda: SparCL(0.5),
    lambda: TDM(0.5),
    DGM,
    lambda: Static(0.5),
    lambda: SET(0.5),
    lambda: SNIP(0.5),
    lambda: RigL(0.5, every=2),
]


def chain(classes: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(72, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, classes)
    )


def new_head(learner: Learner) -> None:
    learner.model[-1] = nn.Linear(12, 4)


def appended(learner: Learner) -> None:
    learner.model.append(nn.Linear(4, 4))


def new_weight(learner: Learner) -> None:
    learner.model[1].weight = nn.Parameter(torch.zeros(16, 72))


CHANGES: list[tuple[Callable[[Learner], None], str]] = [
    (new_head, "does not hold 5.weight and 1 more, added, exchanged"),
    (appended, "does not hold 6.weight and 1 more"),
    (new_weight, "does not hold 1.weight, added"),
    (lambda learner: learner.model.pop(3), "holds 2 parameter"),
    (lambda learner: setattr(learner, "model", chain()), "model is another than the one it was made with"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
@pytest.mark.parametrize("learned", [0, 1])
@pytest.mark.parametrize("sparsifier", [None, lambda: SparCL(0.5)])
def test_what_the_optimizer_does_not_hold_is_named_at_learn_and_at_save(
    tmp_path: Path, change: Callable[[Learner], None], message: str, learned: int, sparsifier: Any
) -> None:
    learner = make_learner(model=chain(), sparsifier=sparsifier and sparsifier())
    stream = blobs()
    for task in stream[:learned]:
        learner.learn(task)
    change(learner)
    for act, kind in ((lambda: learner.learn(stream[learned]), ConfigError), (None, CheckpointError)):
        with pytest.raises(kind, match=message) as caught:
            act() if act else learner.save(tmp_path)
        assert "\n" not in str(caught.value)
        assert "make a new Learner" in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_a_new_head_trains_in_a_new_learner_or_where_the_optimizer_is_given_it() -> None:
    first, second = blobs()
    learner = make_learner(model=chain(), sparsifier=None)
    learner.learn(first)
    learner.model[-1] = head = nn.Linear(12, 4)
    learner.optimizer = adam(learner.model.parameters())
    before = head.weight.detach().clone()
    learner.learn(second)
    assert not torch.equal(head.weight, before)
    grown = make_learner(model=chain(), sparsifier=None)
    grown.model.append(last := nn.Linear(4, 4))
    before = last.weight.detach().clone()
    grown.optimizer.add_param_group({"params": list(last.parameters())})
    grown.learn(first)
    assert not torch.equal(last.weight, before)


@pytest.mark.parametrize("method", ["packnet", "lps", "ewc"])
def test_a_method_that_remembers_each_parameter_takes_no_others_even_if_the_optimizer_has_them(method: str) -> None:
    learner = make_learner(model=chain(), method=METHODS[method](), sparsifier=None)
    first, second = blobs()
    learner.learn(first)
    new_head(learner)
    learner.optimizer = adam(learner.model.parameters())
    with pytest.raises(ConfigError, match=f"method {method} remembers each parameter"):
        learner.learn(second)


def test_another_optimizer_under_a_mask_and_a_weight_written_outside_it_are_refused() -> None:
    first = blobs()[0]
    learner = make_learner(model=chain())
    learner.optimizer = adam(learner.model.parameters())
    with pytest.raises(ConfigError, match="the optimizer that it was given, and this is another"):
        learner.learn(first)
    learner = make_learner(model=chain())
    learner.model.load_state_dict(chain().state_dict())
    with pytest.raises(ConfigError, match="layer 3 has weights where its mask has none"):
        learner.learn(first)


def test_logits_of_another_size_than_those_remembered_are_refused() -> None:
    learner = make_learner(model=chain(), method=DER(8), sparsifier=None)
    first, second = blobs()
    learner.learn(first)
    learner.model[-1] = nn.Linear(12, 6)
    learner.optimizer = adam(learner.model.parameters())
    with pytest.raises(ConfigError, match="6 logits, but the buffer remembers 4"):
        learner.learn(second)


def test_an_optimizer_that_leaves_parameters_out_from_the_start_is_allowed(tmp_path: Path) -> None:
    def make(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(list(parameters)[2:], lr=0.1)

    model = chain()
    stem = model[1].weight.detach().clone()
    learner = make_learner(model=model, optimizer=make)
    for task in blobs():
        learner.learn(task)
    learner.save(tmp_path)
    assert torch.equal(model[1].weight, stem)


def test_what_was_frozen_and_left_out_is_refused_once_it_is_unfrozen() -> None:
    model = chain()
    model[1].requires_grad_(False)
    learner = make_learner(
        model=model, sparsifier=None, optimizer=lambda ps: torch.optim.SGD([p for p in ps if p.requires_grad], lr=0.1)
    )
    first, second = blobs()
    learner.learn(first)
    model[1].requires_grad_(True)
    with pytest.raises(ConfigError, match=r"does not hold 1\.weight and 1 more, added, exchanged or unfrozen"):
        learner.learn(second)


def test_an_optimizer_with_parameters_of_its_own_trains_and_says_that_it_cannot_be_saved(tmp_path: Path) -> None:
    extra = nn.Parameter(torch.zeros(3))
    learner = make_learner(model=chain(), sparsifier=None, optimizer=lambda ps: torch.optim.SGD([*ps, extra], lr=0.1))
    learner.learn(blobs()[0])
    with pytest.raises(CheckpointError, match="a parameter that the model does not have"):
        learner.save(tmp_path)


# --- frozen -----------------------------------------------------------------------------------------------------------


def frozen_parts(model: nn.Module, names: tuple[str, ...]) -> dict[str, Tensor]:
    for name in names:
        model.get_submodule(name).requires_grad_(False)
    return {
        f"{name}.{key}": p.detach().clone() for name in names for key, p in model.get_submodule(name).named_parameters()
    }


def same(model: nn.Module, kept: dict[str, Tensor]) -> bool:
    return all(torch.equal(model.get_parameter(name), value) for name, value in kept.items())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("when", ["before", "after making", "between tasks"])
@pytest.mark.parametrize("parts", [("stem",), ("conv", "norm1"), ("hidden",)])
def test_a_frozen_weight_stays_to_the_bit_under_every_method(
    method: str, when: str, parts: tuple[str, ...], tmp_path: Path
) -> None:
    stream, model = blobs(3), Net(classes=6)
    tasks = list(stream.merged() if METHODS[method].learns_all_at_once else stream)
    kept = frozen_parts(model, parts) if when == "before" else {}
    learner = make_learner(model=model, method=METHODS[method](), sparsifier=None)
    if when == "after making":
        kept = frozen_parts(model, parts)
    learner.learn(tasks[0])
    if when == "between tasks":
        kept = frozen_parts(model, parts)
    for task in tasks[1:]:
        learner.learn(task)
        assert same(model, kept)
    assert same(model, kept)
    accuracy = learner.evaluate()
    fresh = Net(classes=6, seed=3)
    again = Learner.load(learner.save(tmp_path), fresh, optimizer=adam, backend="reference")
    assert same(fresh, kept)
    assert not fresh.get_submodule(parts[0]).weight.requires_grad
    assert again.evaluate(tasks) == accuracy


@pytest.mark.parametrize("method", ["packnet", "lps"])
def test_a_frozen_stem_takes_part_in_every_answer_and_stays_frozen(method: str) -> None:
    stream, model = blobs(2), Net()
    kept = frozen_parts(model, ("stem",))
    learner = make_learner(model=model, method=METHODS[method](), sparsifier=None, epochs=8)
    answers = []
    for task in stream:
        learner.learn(task)
        learner.model.eval()
        answers.append(learner.method.predict(stream[0].test.inputs, stream[0]))
    assert torch.equal(answers[0], answers[1])
    assert same(model, kept)
    assert min(learner.evaluate().task_il) > 80.0  # a stem at zero for a quarter would be no stem
    model.stem.requires_grad_(True)
    third = blobs(3)[2]
    learner = make_learner(model=frozen_net(6), method=METHODS[method](), sparsifier=None)
    for task in blobs(3)[:2]:
        learner.learn(task)
    learner.model.stem.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"stem\.weight was frozen when the first task began"):
        learner.learn(third)


def frozen_net(classes: int) -> Net:
    model = Net(classes=classes)
    model.stem.requires_grad_(False)
    return model


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sparsifier", PRUNING)
def test_a_prunable_layer_frozen_between_tasks_is_named_and_untouched(
    backend: str, sparsifier: Callable[[], Any]
) -> None:
    learner = make_learner(sparsifier=sparsifier(), backend=backend, method=DERpp(12))
    first, second = blobs()
    learner.learn(first)
    learner.model.conv.requires_grad_(False)
    before = copy.deepcopy(learner.model.state_dict())
    with pytest.raises(ConfigError, match=r"layer conv is not trained .*leave it out of `prunable`") as caught:
        learner.learn(second)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in learner.model.state_dict().items())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sparsifier", PRUNING)
@pytest.mark.parametrize("when", ["before", "between tasks"])
def test_a_frozen_layer_that_is_not_pruned_stays_to_the_bit_under_every_sparsifier(
    backend: str, sparsifier: Callable[[], Any], when: str
) -> None:
    model = Net()
    kept = frozen_parts(model, ("stem", "norm2", "classifier")) if when == "before" else {}
    learner = make_learner(model=model, sparsifier=sparsifier(), backend=backend)
    first, second = blobs()
    learner.learn(first)
    if when == "between tasks":
        kept = frozen_parts(model, ("stem", "norm2", "classifier"))
    moved = model.get_submodule("hidden").bias.detach().clone()
    learner.learn(second)
    assert same(model, kept)
    assert not torch.equal(model.hidden.bias, moved)


def test_a_model_of_ours_is_loaded_with_what_was_frozen(tmp_path: Path) -> None:
    model = ConvNet(4, 2, 8)
    stem = next(iter(model.parameters())).requires_grad_(False)
    learner = Learner(model, EWC(), epochs=2, batch_size=8)
    first, second = blobs()
    learner.learn(first)
    learner.save(tmp_path)
    learner.learn(second)
    loaded = Learner.load(tmp_path)
    loaded.learn(second)
    assert torch.equal(next(iter(loaded.model.parameters())), stem)
    for key, value in loaded.model.state_dict().items():
        assert torch.equal(value, learner.model.state_dict()[key])


def test_a_checkpoint_that_freezes_what_is_not_there_is_refused() -> None:
    learner = make_learner(model=frozen_net(4), sparsifier=None)
    state = learner.checkpoint_state()
    assert state["learner"]["frozen"] == ["stem.weight"]
    state["learner"]["frozen"] = ["nobody"]
    with pytest.raises(CheckpointError, match="frozen the unknown parameter 'nobody'"):
        make_learner(sparsifier=None).restore(state)


def test_a_model_that_is_frozen_all_over_or_has_nothing_to_train_is_refused() -> None:
    learner = make_learner(model=chain().requires_grad_(False), sparsifier=None)
    with pytest.raises(ConfigError, match="nothing is trained: requires_grad is False"):
        learner.learn(blobs()[0])
    with pytest.raises(ConfigError, match="the model has no parameters"):
        make_learner(model=nn.Flatten(), sparsifier=None)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sparsifier", PRUNING)
def test_a_model_refused_for_a_frozen_layer_stays_what_it_was_and_learns_with_that_left_out(
    backend: str, sparsifier: Callable[[], Any], tmp_path: Path
) -> None:
    model = Net()
    kept = frozen_parts(model, ("hidden",))
    asked = SparCL(0.5, prunable=["conv", "hidden"])
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"layer hidden is not trained .*leave it out of `prunable`"):
            make_learner(model=model, sparsifier=asked, backend=backend)
        assert type(model.hidden) is nn.Linear
        assert type(model.conv) is nn.Conv2d
    learner = make_learner(model=model, sparsifier=sparsifier(), backend=backend)
    assert [layer.name for layer in learner.sparsifier.layers] == ["grouped", "conv"]
    for task in blobs():
        learner.learn(task)
    assert same(model, kept)
    learner.save(tmp_path)
