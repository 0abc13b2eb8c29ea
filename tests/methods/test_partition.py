"""PackNet and LPS: what a task has learned stays, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lent import batch, cross_entropy, lend
from toys import Net, blobs

from sparcl import Learner
from sparcl.errors import CheckpointError, ConfigError
from sparcl.methods import LPS, PackNet
from sparcl.methods.partition import PartitionMethod
from sparcl.streams import from_arrays, make_task

Make = Callable[..., PartitionMethod]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}
DIVIDED = ("stem.weight", "grouped.weight", "conv.weight", "hidden.weight")


def same(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    pairs = zip(before, after, strict=True)
    return all(torch.equal(one.view(torch.int32), other.view(torch.int32)) for one, other in pairs)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make", [PackNet, LPS])
def test_the_outputs_of_old_tasks_stay_bit_for_bit(make: Make, optimizer: str) -> None:
    stream = blobs(4)
    learner = Learner(Net(8), make(pruned=0.5), optimizer=OPTIMIZERS[optimizer], epochs=3, batch_size=10)
    outputs: list[torch.Tensor] = []

    def now(tasks: int) -> list[torch.Tensor]:
        learner.model.eval()
        return [learner.method.predict(old.test.inputs, old) for old in stream[:tasks]]

    def look(event: str, figures: dict[str, Any]) -> None:
        if event == "epoch.end":  # inside a task, too: what trains now answers for none before it
            assert same(outputs, now(figures["task"]))

    learner.observers.append(look)
    for task in stream:
        learner.learn(task)
        after = now(task.index + 1)
        assert same(outputs, after[:-1])
        outputs = after
    assert outputs[0].flatten()[0].isfinite()
    assert learner.evaluate().class_il is None


@pytest.mark.parametrize("make", [PackNet, LPS])
def test_a_task_given_by_the_names_of_its_classes_is_answered_with_what_was_learned_on_it(make: Make) -> None:
    x, y = (torch.cat([getattr(t.train, part) for t in blobs(3)]) for part in ("inputs", "labels"))
    named = [f"kind {k}" for k in y.tolist()]
    stream = from_arrays(x, named, x, named, classes_per_task=2)
    learner = Learner(Net(6), make(), epochs=6, batch_size=10, lr=0.1)
    for task in stream:
        learner.learn(task)
    known = learner.evaluate().task_il
    assert known is not None
    assert len({*known}) > 1  # another task's weights would be seen
    for t, task in enumerate(stream):
        assert task.test is not None
        names = [stream.class_names[k] for k in task.test.labels.tolist()]
        again = make_task(task.test.inputs, names, test=(task.test.inputs, names))
        assert learner.evaluate([again]).task_il == known[t : t + 1]
        last = make_task(task.test.inputs[:1], [stream.class_names[task.classes[1]]])  # one of its classes alone
        assert learner.classes.known(last, 0).index == t
    mixed = make_task(x[::8], named[::8], test=(x[::8], named[::8]))
    with pytest.raises(ConfigError, match="answers for one task, and kind 0, kind 2, kind 4 were not"):
        learner.evaluate([mixed])


@pytest.mark.parametrize("make", [PackNet, LPS])
def test_each_task_has_statistics_of_its_own(make: Make) -> None:
    first, second = blobs()
    learner = Learner(Net(), make(), epochs=2, batch_size=10)
    learner.learn(first)
    norm = learner.model.norm1
    assert isinstance(norm, torch.nn.BatchNorm2d)
    after_first = norm.running_mean.clone()
    learner.learn(second)
    after_second = norm.running_mean.clone()
    assert not torch.equal(after_first, after_second)
    learner.model.eval()
    answers = [learner.method.predict(task.test.inputs, task) for task in (first, second)]
    norm.running_mean.fill_(7.0)
    for task, answer in zip((first, second), answers, strict=True):
        assert torch.equal(learner.method.predict(task.test.inputs, task), answer)
    learner.method.statistics["0"]["norm1.running_mean"].copy_(after_second)
    assert not torch.equal(learner.method.predict(first.test.inputs, first), answers[0])


@pytest.mark.parametrize("make", [PackNet, LPS])
def test_a_checkpoint_without_a_tasks_statistics_is_refused(make: Make) -> None:
    stream = blobs(3)
    learner = Learner(Net(6), make(), batch_size=10)
    for task in stream:
        learner.learn(task)
    state = learner.method.state_dict()
    learner.method.load_state_dict(state)  # it is whole
    for change, message in (
        (lambda kept: kept.pop("1"), "the statistics of the tasks in the checkpoint lacks '1'"),
        (lambda kept: kept.update({"3": kept["0"]}), "has the unknown '3'"),
        (lambda kept: kept["0"].pop("norm1.running_var"), "a task's statistics in the checkpoint lacks"),
        (lambda kept: kept["0"].update({"norm1.running_var": torch.ones(3)}), "it must be torch.float32"),
    ):
        kept = {t: dict(by) for t, by in state["statistics"].items()}
        change(kept)
        with pytest.raises(CheckpointError, match=message):
            learner.method.load_state_dict({**state, "statistics": kept})


@pytest.mark.parametrize("make", [PackNet, LPS])
def test_a_task_without_a_part_is_answered_by_the_network_as_it_is(make: Make) -> None:
    first, second = blobs()
    learner = Learner(Net(), make(), batch_size=10)
    model = learner.model.eval()
    x = second.test.inputs
    untrained = learner.method.predict(x, second)
    torch.testing.assert_close(untrained[:, 2:], model(x)[:, 2:].detach())
    assert torch.isinf(untrained[:, :2]).all()
    learner.learn(first)
    model.eval()
    later = learner.method.predict(x, second)
    torch.testing.assert_close(later[:, 2:], model(x)[:, 2:].detach())


@pytest.mark.parametrize("make", [PackNet, LPS])
def test_each_task_keeps_exactly_its_share_of_what_is_free(make: Make) -> None:
    stream, method = blobs(3), make(pruned=0.6)
    learner = Learner(Net(6), method, epochs=2, batch_size=10)
    for task in stream:
        learner.learn(task)
    assert [learner.method.names[i] for i in method.divided] == list(DIVIDED)
    for i in method.divided:
        free, owner = method.parameters[i].numel(), method.owner[i]
        for t in range(3):
            kept = free - round(0.6 * free)
            assert int((owner == t + 1).sum()) == kept
            free -= kept
        assert int((owner == 0).sum()) == free
        assert not method.parameters[i].detach()[owner == 0].any()
    for name, owner in zip(method.names, method.owner, strict=True):
        if name.startswith("classifier"):
            assert owner.reshape(6, -1)[:, 0].tolist() == [1, 1, 2, 2, 3, 3]
        elif name not in DIVIDED:
            assert (owner == 1).all()


def test_packing_keeps_the_largest_and_frees_the_others() -> None:
    method, model = PackNet(pruned=0.75), Net()
    lend(method, model)
    method.begin_task(blobs()[0])
    before = model.grouped.weight.detach().clone()
    method.begin_step(0.66)
    assert not method.packed
    method.begin_step(0.67)
    assert method.packed
    kept = model.grouped.weight != 0
    assert int(kept.sum()) == before.numel() - round(0.75 * before.numel())
    assert before[kept].abs().min() >= before[~kept].abs().max()
    assert torch.equal(model.grouped.weight.detach()[kept], before[kept])


def test_after_packing_only_the_kept_weights_train() -> None:
    stream, method = blobs(2), PackNet()
    learner = Learner(Net(), method, epochs=3, batch_size=10)
    learner.learn(stream[0])
    seen: list[tuple[bool, torch.Tensor]] = []
    i = method.names.index("grouped.weight")
    learner.observers.append(
        lambda event, _: (
            seen.append((method.packed, method.parameters[i].detach().clone())) if event == "step.end" else None
        )
    )
    learner.learn(stream[1])
    trained, packed = [w for done, w in seen if not done], [w for done, w in seen if done]
    assert len(trained) == 8
    assert len(packed) == 4
    owner = method.owner[i]
    assert torch.equal(trained[0][owner == 1], packed[-1][owner == 1])
    assert (trained[0] != trained[-1])[owner != 1].any()
    assert (packed[0] != packed[-1])[owner == 2].any()
    assert all(not w[owner == 0].any() for w in packed)


def test_the_penalty_of_lps_is_its_formula_and_rho_grows() -> None:
    stream, method = blobs(2), LPS(rho=0.01, shared=0.5)
    learner = Learner(Net(), method, epochs=2, batch_size=10)
    learner.learn(stream[0])
    method.begin_task(stream[1])
    generator = torch.Generator().manual_seed(0)
    for letter in "mZUYK":
        for value in method.admm[letter].values():
            value.data = torch.randn(value.shape, generator=generator)
    for stage, progress in enumerate((0.0, 0.17, 0.34, 0.51)):
        method.round = 3 * int(progress / (2 / 3) * 4)
        expected = torch.zeros(())
        for i in method.divided:
            m, z, u, y, k = (method.admm[letter][str(i)] for letter in "mZUYK")
            free = method.owner[i] == 0
            expected = expected + (method.parameters[i] - z + u)[free].square().sum()
            expected = expected + (m - y + k)[~free].square().sum()
        torch.testing.assert_close(method.penalty(), 0.01 * 10**stage / 2 * expected)


def test_what_lps_trains_on_is_the_tasks_loss_and_the_penalty_until_it_is_packed() -> None:
    stream, method, model = blobs(2), LPS(rho=1.0), Net()
    lend(method, model)
    method.begin_task(stream[0])
    now = batch(stream[0], 0)
    with torch.no_grad():
        for i in method.divided:
            method.parameters[i].add_(0.1)  # away from their projections
    penalty = method.penalty().detach()
    loss, logits = method.loss(now)
    alone = cross_entropy(logits[:, :2], now.labels)
    assert penalty > 0.1
    torch.testing.assert_close(loss, alone + penalty)
    method.pack()
    loss, logits = method.loss(now)
    torch.testing.assert_close(loss, cross_entropy(logits[:, :2], now.labels))


def test_lps_trains_the_network_that_its_masks_make() -> None:
    stream, method = blobs(2), LPS(shared=0.5)
    learner = Learner(Net(), method, epochs=2, batch_size=10, backend="reference")
    learner.learn(stream[0])
    method.begin_task(stream[1])
    i = method.names.index("conv.weight")
    weight, old, inputs = method.parameters[i], method.owner[i] == 1, stream[1].train.inputs[:8]
    with torch.no_grad():
        method.admm["m"][str(i)].fill_(0.5)
        found, kept = method.forward(inputs), weight.clone()
        weight.copy_(torch.where(old, 0.5 * kept, kept))
        torch.testing.assert_close(found, learner.model(inputs))
        weight.copy_(kept)
        assert not torch.allclose(found, learner.model(inputs))
        method.pack()
        own = method.forward(inputs)[:, 2:]
        torch.testing.assert_close(own, method.predict(inputs, stream[1])[:, 2:])
        assert not torch.allclose(own, learner.model(inputs)[:, 2:])


def test_lps_pulls_weights_and_masks_towards_their_projections() -> None:
    stream, method = blobs(2), LPS(shared=0.5)
    learner = Learner(Net(), method, epochs=2, batch_size=10)
    learner.learn(stream[0])
    method.begin_task(stream[1])
    i = method.names.index("conv.weight")
    weight, key = method.parameters[i], str(i)
    with torch.no_grad():
        method.admm["m"][key].copy_(torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)))
    method.begin_step(0.06)  # the second of twelve rounds: Z, Y, then U, K
    assert method.round == 1
    free, old = method.owner[i] == 0, method.owner[i] == 1
    z, y, m = method.admm["Z"][key], method.admm["Y"][key], method.admm["m"][key].detach()
    kept = int(free.sum()) - round(0.75 * int(free.sum()))
    top = weight.detach()[free].abs().topk(kept).values.min()
    assert torch.equal(z[free], torch.where(weight.detach()[free].abs() >= top, weight.detach()[free], 0.0))
    assert int(y.sum()) == round(0.5 * int(old.sum()))
    assert m[old & (y == 1)].min() > m[old & (y == 0)].max()
    torch.testing.assert_close(method.admm["U"][key], weight.detach() - z)
    torch.testing.assert_close(method.admm["K"][key], m - y)


def test_an_lps_task_answers_with_its_own_weights_and_those_it_shares() -> None:
    stream, method = blobs(3), LPS(shared=0.5)
    learner = Learner(Net(6), method, epochs=2, batch_size=10)
    for task in stream:
        learner.learn(task)
    for i in method.divided:
        owner = method.owner[i]
        for t in range(3):
            used = method.used(i, t)
            assert used[owner == t + 1].all()
            assert not used[(owner > t + 1) | (owner == 0)].any()
            older = (owner > 0) & (owner <= t)
            assert int(used[older].sum()) == round(0.5 * int(older.sum()))


def test_masks_of_lps_are_trained() -> None:
    stream, method = blobs(2), LPS()
    learner = Learner(Net(), method, epochs=2, batch_size=10)
    learner.learn(stream[0])
    moved: list[bool] = []

    def look(event: str, figures: dict[str, object]) -> None:
        del figures
        if event == "step.end" and not method.packed:
            i = method.divided[1]
            m, old = method.admm["m"][str(i)].detach(), method.owner[i] == 1
            moved.append(bool((m[old] != 1).any()) and bool((m[~old] == 1).all()))

    learner.observers.append(look)
    learner.learn(stream[1])
    assert moved
    assert all(moved)


@pytest.mark.parametrize("pruned", [0.0, 1.0])
@pytest.mark.parametrize("make", [PackNet, LPS])
def test_a_share_that_leaves_nothing_is_refused(make: Make, pruned: float) -> None:
    with pytest.raises(ConfigError, match=f"pruned share {pruned} is not allowed"):
        make(pruned=pruned)


@pytest.mark.parametrize("make", [PackNet, LPS])
def test_gradients_of_what_may_not_move_are_cleared_before_they_are_counted(make: Make) -> None:
    """A norm of all gradients, which clipping takes, is that of what moves; the optimizer's state stays empty there."""
    seen: list[int] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            method, held = learner.method, 0
            assert isinstance(method, PartitionMethod)
            for i, parameter in enumerate(method.parameters):
                fixed = ~method.trainable(i)
                held += int(fixed.sum())
                assert parameter.grad is None or not parameter.grad[fixed].any(), i
            seen.append(held)
            super().step(closure)

    learner = Learner(Net(), make(pruned=0.5), optimizer=lambda p: Watched(p, lr=0.1), epochs=2, batch_size=10)
    for task in blobs():
        learner.learn(task)
    assert min(seen[len(seen) // 2 :]) > 0, "nothing was fixed: nothing was tested"


def top(values: torch.Tensor, count: int) -> torch.Tensor:
    """Bool: the `count` largest."""
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[values.topk(count).indices] = True
    return chosen


def test_lps_projects_what_its_duals_have_gathered_and_begins_anew_with_each_stage() -> None:
    """From the second round on Z and Y are projections of W + U and m + K; a stage of rho starts at U = K = 0."""
    stream, method = blobs(2), LPS(shared=0.5)
    learner = Learner(Net(), method, epochs=2, batch_size=10)
    learner.learn(stream[0])
    method.begin_task(stream[1])
    i = method.names.index("conv.weight")
    weight, key, a = method.parameters[i], str(i), method.admm
    generator = torch.Generator().manual_seed(1)
    free, old = method.owner[i] == 0, method.owner[i] == 1
    for progress in (0.06, 0.12):
        with torch.no_grad():
            weight.copy_(torch.rand(weight.shape, generator=generator) - 0.5)
            a["m"][key].copy_(torch.rand(weight.shape, generator=generator))
        u, k = a["U"][key].clone(), a["K"][key].clone()
        method.begin_step(progress)
    assert method.round == 2
    w, m = weight.detach(), a["m"][key].detach()
    kept = int(free.sum()) - round(0.75 * int(free.sum()))
    stays = top((w + u)[free].abs(), kept)
    assert not torch.equal(stays, top(w[free].abs(), kept))  # else nothing is told apart
    assert torch.equal(a["Z"][key][free], torch.where(stays, (w + u)[free], 0.0))
    shared = top((m + k)[old], round(0.5 * int(old.sum())))
    assert not torch.equal(shared, top(m[old], int(shared.sum())))
    assert torch.equal(a["Y"][key][old] == 1, shared)
    torch.testing.assert_close(a["U"][key], u + w - a["Z"][key])
    torch.testing.assert_close(a["K"][key], k + m - a["Y"][key])
    method.begin_step(0.17)  # the fourth round: rho has grown tenfold
    assert method.round == 3
    assert not a["U"][key].any()
    assert not a["K"][key].any()
    assert torch.equal(a["Z"][key][free], torch.where(top(w[free].abs(), kept), w[free], 0.0))


@pytest.mark.parametrize("make", [PackNet, LPS])
def test_a_weight_frozen_from_the_start_answers_for_every_task_after_a_checkpoint(make: Any, tmp_path: Path) -> None:
    stream, model = blobs(2), Net()
    model.conv.weight.requires_grad_(False)
    learner = Learner(model, make(), epochs=2, batch_size=10)
    for task in stream:
        learner.learn(task)
    learner.save(tmp_path)
    again = Learner.load(tmp_path, Net())
    for task in stream:
        x = task.test.inputs[:9]
        assert torch.equal(learner.method.predict(x, task), again.method.predict(x, task))
    i = again.method.names.index("conv.weight")
    assert i not in again.method.divided


@pytest.mark.parametrize("make", [PackNet, LPS])
def test_what_is_free_of_a_weight_that_was_frozen_later_stays_free(make: Any) -> None:
    stream, method = blobs(2), make()
    learner = Learner(Net(), method, epochs=2, batch_size=10)
    learner.learn(stream[0])
    i = method.names.index("conv.weight")
    weight, owner = method.parameters[i].detach().clone(), method.owner[i].clone()
    learner.model.conv.weight.requires_grad_(False)
    learner.learn(stream[1])
    assert torch.equal(method.owner[i], owner)
    assert torch.equal(method.parameters[i], weight)


def test_masks_of_lps_follow_the_gradient_of_each_step_alone() -> None:
    stream, method = blobs(2), LPS(shared=0.5, mask_lr=0.5)
    learner = Learner(Net(), method, epochs=2, batch_size=10, backend="reference")
    learner.learn(stream[0])
    method.begin_task(stream[1])
    key = str(method.names.index("conv.weight"))
    m = method.admm["m"][key]
    for start in (0, 10):
        before, own = m.detach().clone(), batch(stream[1], start)
        loss, _ = method.loss(own)
        (gradient,) = torch.autograd.grad(loss, m, retain_graph=True)
        loss.backward()
        method.after_backward(own)
        torch.testing.assert_close(m.detach(), before - 0.5 * gradient)


@pytest.mark.parametrize("make", [PackNet, LPS])
def test_a_weight_frozen_before_the_first_task_is_divided_by_nobody(make: Any) -> None:
    stream, method = blobs(2), make()
    learner = Learner(Net(), method, epochs=2, batch_size=10)
    learner.model.conv.weight.requires_grad_(False)
    weight = learner.model.conv.weight.detach().clone()
    for task in stream:
        learner.learn(task)
    i = method.names.index("conv.weight")
    assert i not in method.divided
    assert torch.equal(learner.model.conv.weight, weight)
    assert f"task-0.mask.{method.names[i]}" not in method.answer_state(stream[0])
