"""Ranking by training steps: the two gradients are those of the formulas, and a step is otherwise as it was."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_saving import BACKENDS, same_files
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from toys import PRUNABLE_OF_NET, Net, blobs

import sparcl
from sparcl.cost.flops import Ledger
from sparcl.errors import ConfigError
from sparcl.learner.learner import Learner
from sparcl.methods import AGEM, DER, ER, ERACE, FDR, DERpp, Finetune, ICaRL, LwF, Method
from sparcl.methods.method import Batch, only
from sparcl.nn import ConvNet
from sparcl.nn.layers import sparse_layers
from sparcl.nn.positions import common
from sparcl.sparsity import DGM, TDM, SparCL
from sparcl.sparsity.collected import MOST_SHARE, Allowance
from sparcl.sparsity.tdm import updates_within
from sparcl.streams import from_arrays

Gradients = list[Tensor]


def of_twin(twin: nn.Module, loss: Tensor) -> Gradients:
    layers = sparse_layers(twin, ("hidden", "conv"))
    gradients = torch.autograd.grad(loss, [la.parameter for la in layers])
    return [la.gather(g) for la, g in zip(layers, gradients, strict=True)]


def by_hand(method: Method, batch: Batch, twin: nn.Module) -> tuple[Gradients, Gradients | None]:
    """The formulas' gradients for the batches of this very step, on a copy of the network, one loss after the other."""
    for layer in sparse_layers(twin, ("hidden", "conv")):
        layer.set_chosen(None)
    if isinstance(method, ER):
        replay = method.replay()
        if replay is not None:
            logits = twin(torch.cat([batch.inputs, replay.inputs]))
            new, old = logits.split([len(batch.labels), len(replay.labels)])
            task = F.cross_entropy(only(new, batch.task.classes), batch.labels)
            layers = sparse_layers(twin, ("hidden", "conv"))
            task_gradient = torch.autograd.grad(task, [la.parameter for la in layers], retain_graph=True)
            gathered = [la.gather(g) for la, g in zip(layers, task_gradient, strict=True)]
            return gathered, of_twin(twin, F.cross_entropy(old, replay.labels))
    task = F.cross_entropy(only(twin(batch.inputs), batch.task.classes), batch.labels)
    task_gradients = of_twin(twin, task)
    remembered = method.replay_importance_loss()
    return task_gradients, None if remembered is None else of_twin(twin, remembered)


def spied(kind: type[Method], skipped: int = 0) -> type[Method]:
    """The method, noting for each later step what `by_hand` says and what one backward pass of the whole would give."""

    class Spied(kind):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__(*(() if kind in (Finetune, LwF) else (20,)))
            self.expected: list[tuple[Gradients, Gradients | None]] = []
            self.whole: list[dict[str, Tensor]] = []
            self.steps = 0

        def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
            self.steps += 1
            if self.steps <= skipped:
                return super().loss(batch)
            host = self.host
            before = host.generator.get_state()
            twin = copy.deepcopy(host.model)
            for hooks in (twin._forward_hooks, twin._forward_pre_hooks):
                hooks.clear()
            self.host = dataclasses.replace(host, model=twin)
            self.expected.append(by_hand(self, batch, twin))
            host.generator.set_state(before)
            twin.zero_grad()
            super().loss(batch)[0].backward()
            self.whole.append({n: p.grad.clone() for n, p in twin.named_parameters() if p.grad is not None})
            host.generator.set_state(before)
            self.host = host
            return super().loss(batch)

    return Spied


class Noting(SparCL):
    """Asks for every step, and notes what it is given and what the step's gradient then is."""

    def __init__(self) -> None:
        super().__init__(0.5, gradients=0.5, samples=0.0, prunable=("hidden", "conv"))
        self.found: list[tuple[Gradients, Gradients]] = []
        self.whole: list[dict[str, Tensor]] = []

    def wants_gradients(self) -> bool:
        self.tdm.collected.ask(window=False)
        self.tdm.collected.budget.reads = 0  # no step is refused
        return super().wants_gradients()

    def take_gradients(self, task: Any, replay: Any, extra: int, samples: int) -> None:
        self.found.append((list(task), list(replay)))
        super().take_gradients(task, replay, extra, samples)

    def after_backward(self) -> None:
        model = self.dgm.model
        super().after_backward()
        self.whole.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        for layer in self.layers:
            if layer.chosen is not None:
                assert not layer.gather(layer.parameter.grad)[~layer.chosen].any()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [ER, DERpp, DER, ERACE, FDR, Finetune, LwF])
def test_the_gradients_of_a_step_are_those_of_the_formulas(kind: type[Method], backend: str) -> None:
    sparsifier, method = Noting(), spied(kind)()
    learner = Learner(Net(), method, sparsifier, lr=0.05, epochs=1, batch_size=8, backend=backend)
    for task in blobs(tasks=2):
        learner.learn(task)
    assert len(sparsifier.found) == len(method.expected) == 2 * 5
    replayed = 0
    for (task_found, replay_found), (task, replay) in zip(sparsifier.found, method.expected, strict=True):
        for found, expected in zip(task_found, task, strict=True):
            close(found, expected)
        replayed += replay is not None
        for i, found in enumerate(replay_found):
            close(found, torch.zeros_like(found) if replay is None else replay[i])
    assert replayed == {ER: 9, DERpp: 9, DER: 9, ERACE: 9, FDR: 5}.get(kind, 0)
    for found, expected in zip(sparsifier.whole, method.whole, strict=True):
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            frozen = gradient == 0
            scale = 2.0 if name.rpartition(".")[0] in sparsifier.tdm.scaled and "bias" not in name else 1.0
            close(gradient, torch.where(frozen, 0.0, scale * expected[name]))  # 1/density where no norm follows


def test_a_method_that_sends_its_replay_back_by_itself_has_it_read_there() -> None:
    """A-GEM: g_ref is that of all active weights, though the frozen are no part of its projection."""
    references: list[list[Tensor]] = []

    class Spied(AGEM):
        def replay_importance_loss(self) -> Tensor | None:
            if (loss := super().replay_importance_loss()) is not None:
                layers = sparse_layers(self.host.model, ("hidden", "conv"))
                wanted = [la.parameter for la in layers]
                gradients = torch.autograd.grad(loss, wanted, retain_graph=True)
                references.append([la.gather(g) for la, g in zip(layers, gradients, strict=True)])
            return loss

    sparsifier = Noting()
    learner = Learner(Net(), Spied(20), sparsifier, lr=0.05, epochs=1, batch_size=8, backend="reference")
    for task in blobs(tasks=2):
        learner.learn(task)
    assert len(references) == 5
    for (_, replay), expected in zip(sparsifier.found[5:], references, strict=True):
        for found, reference in zip(replay, expected, strict=True):
            close(found, reference)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("kind", "batches", "step"), [(ER, 1, 140), (DERpp, 4, 90)])
def test_a_mask_update_ranks_by_cwi_of_the_steps_before_it(
    kind: type[Method], batches: int, step: int, backend: str
) -> None:
    """At a task's first update: |w| + α·|mean| + β·|mean| over the steps before."""

    class Stop(Exception):  # noqa: N818
        pass

    scores: list[list[Tensor]] = []

    class Noted(TDM):
        def update(self) -> None:
            scores.append(self._cwi())
            raise Stop

    method = spied(kind, step - batches)()
    tdm = Noted(0.5, batches=batches, prunable=("hidden", "conv"), alpha=0.3, beta=0.7)
    learner = Learner(Net(), method, tdm, lr=0.05, epochs=2 * step, batch_size=8, backend=backend)
    with pytest.raises(Stop):
        learner.learn(blobs(tasks=2)[0])
    assert learner.steps == step
    assert tdm.collected.batches == batches
    steps = [(t, r) for t, r in method.expected if r is not None]
    assert len(steps) == batches
    for i, layer in enumerate(tdm.layers):
        task, replay = (torch.stack([parts[which][i] for parts in steps]).mean(0) for which in (0, 1))
        close(scores[0][i], layer.gather(layer.parameter).abs() + 0.3 * task.abs() + 0.7 * replay.abs())


def watched(method: Method, samples: int, epochs: int, batch: int) -> tuple[Learner, list[str], list[float]]:
    events: list[str] = []
    shares: list[float] = []

    def watch(event: str, figures: dict[str, Any]) -> None:
        events.append(event)
        if event == "importance.passed":
            shares.append((figures["extra"] + figures["repeated"]) * 2 / 3 / figures["samples"])

    sparsifier = SparCL(0.5, prunable=PRUNABLE_OF_NET, samples=0.0)
    learner = Learner(
        Net(), method, sparsifier, epochs=epochs, batch_size=batch, backend="reference", observers=[watch]
    )
    for task in blobs(tasks=2, per_class=samples // 2):
        del events[:], shares[:]
        learner.learn(task)
    return learner, events, shares


@pytest.mark.parametrize("method", [ER, DERpp])
def test_a_step_that_is_read_is_charged_what_pytorch_counts(method: Any) -> None:
    """In ER, whose replay is part of the task's own pass, the remembered samples go back once more as a whole."""
    torch.manual_seed(0)
    parts = (nn.Linear(8, 64, bias=False), nn.ReLU(), nn.Linear(64, 8, bias=False), nn.Linear(8, 4, bias=False))
    model = nn.Sequential(nn.Flatten(), *parts)
    learner = Learner(model, method(64), DGM(0.2, interval=1), batch_size=32, steps=3, backend="reference")
    learner.sparsifier.collected.budget.share = 1e9  # every step is read
    ledger, theirs = Ledger(model, learner.sparsifier.layers, (8,)), FlopCounterMode(display=False)
    before, found = [0, 0], []

    def look(event: str, figures: dict[str, Any]) -> None:
        del figures
        if event == "step.begin":
            before[:] = ledger.executed, theirs.get_total_flops()
        elif event == "step.end":
            found.append((ledger.executed - before[0], theirs.get_total_flops() - before[1]))

    learner.observers += [ledger, look]
    with theirs:
        learner.learn(from_arrays(torch.randn(64, 8), torch.arange(64) % 4, torch.randn(4, 8), torch.arange(4))[0])
    assert len(found) == 3
    assert [ours for ours, _ in found] == [counted for _, counted in found]


@pytest.mark.parametrize("method", [lambda: ER(20), lambda: DERpp(20), Finetune])
@pytest.mark.parametrize(("steps", "epochs"), [(2, 1), (10, 2), (50, 5), (300, 30)])
def test_ranking_takes_a_bounded_share_of_a_tasks_steps_however_few(method: Any, steps: int, epochs: int) -> None:
    _, events, shares = watched(method(), 4 * steps // epochs, epochs, 4)
    assert events.count("step.end") == steps
    assert len(shares) >= 1  # whatever ranks has something to rank by
    assert sum(shares) <= max(shares[0], MOST_SHARE * steps)
    assert events.count("tdm.update") == updates_within(steps) == {2: 0, 10: 0, 50: 4, 300: 8}[steps]
    assert events.count("dgm.choose") >= 1 + updates_within(steps)
    if steps == 300 and isinstance(method(), DERpp):
        assert len(shares) >= 10 + 8


def test_no_pass_is_made_of_its_own() -> None:
    """Forward passes are those of the steps: one of the task's batch, two of the buffer's."""
    passes: list[int] = []
    model = Net()
    model.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    learner = Learner(
        model, DERpp(20), SparCL(0.5, prunable=PRUNABLE_OF_NET), epochs=2, batch_size=8, backend="reference"
    )
    learner.learn(blobs(tasks=2, per_class=32)[0])
    assert learner.steps > 10
    assert len(passes) - 1 == 1 + 3 * (learner.steps - 1)  # one before training asks whether the model fits


def test_running_statistics_and_weights_move_as_without_ranking() -> None:
    """A dense network that is ranked (DGM that freezes next to nothing) learns what it learns unranked."""
    ends = []
    for frozen in (0.0, 1e-9):
        dgm = DGM(frozen, interval=1, prunable=PRUNABLE_OF_NET)
        learner = Learner(Net(), DERpp(20), dgm, lr=0.05, epochs=4, batch_size=8, backend="reference")
        learner.learn(blobs(tasks=2)[0])
        ends.append(learner.model.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", [lambda: SparCL(0.7, samples=0.0), lambda: TDM(0.7), lambda: DGM(0.3, interval=7)])
def test_resumed_at_any_step_of_a_window_it_goes_on_to_the_same_bits(
    tmp_path: Path, make: Any, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparcl.sparsity.tdm.STEPS_APART", 1)  # tasks are short here

    def learn(learner: Learner) -> Path:
        for task in blobs(tasks=2, per_class=24)[learner.learned :]:
            learner.learn(task)
        return learner.save(tmp_path / f"end{len(list(tmp_path.iterdir()))}")

    every = tmp_path / "all"
    torch.manual_seed(0)
    options: dict[str, Any] = {"epochs": 6, "batch_size": 8, "backend": backend}
    model = ConvNet(4, 2, 8)
    whole = Learner(model, DERpp(20), make(), **options)
    kept: list[Path] = []
    windows: list[bool] = []

    def keep(event: str, figures: dict[str, Any]) -> None:
        del figures
        if event == "step.end" and whole.steps in (2, 37, 57, 58, 59, 60, 61):
            kept.append(whole.save(every / str(whole.steps)))
            collected = getattr(whole.sparsifier, "tdm", whole.sparsifier).collected
            windows.append(collected.in_window)

    whole.observers.append(keep)
    end = learn(whole)
    assert len(kept) == 7
    assert any(windows) != isinstance(whole.sparsifier, DGM)  # before a mask update
    for folder in kept:
        assert same_files(end, learn(sparcl.Learner.load(folder, backend=backend)))


def test_what_was_collected_follows_the_mask() -> None:
    tdm = TDM(0.5, prunable=("hidden",)).attach(net := Net(), torch.optim.SGD(net.parameters(), lr=0.1))
    tdm.collected.ask(window=True)
    tdm.take_gradients([-torch.arange(48.0)], [torch.arange(48.0)], 8, 24)
    before = tdm.layers[0].index
    new = torch.tensor(sorted({*range(96)} - set(before.tolist()))[:3])
    after = torch.cat([before[:45], new]).sort().values
    tdm.collected.move(0, *common(before, after, 96), len(after))
    task, replay = (dict(zip(after.tolist(), g[0].tolist(), strict=True)) for g in tdm.collected.means())
    for rank, position in enumerate(before[:45].tolist()):
        assert (task[position], replay[position]) == (-rank, rank)
    for position in new.tolist():  # nothing is known of them: the mean magnitude
        assert task[position] == replay[position] == sum(range(48)) / 48


class Parted(Finetune):
    """Calls parts of the model, not the model."""

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self.host.model.forward(batch.inputs)
        return F.cross_entropy(logits, batch.labels), logits


def test_a_method_that_cannot_be_taken_apart_is_told_what_to_use() -> None:
    with pytest.raises(ConfigError, match="whole model; use ranking 'fresh'"):
        Learner(Net(), Parted(), SparCL(0.5), backend="reference").learn(blobs()[0])
    fresh = SparCL(0.5, ranking="fresh")
    Learner(Net(), Parted(), fresh, backend="reference").learn(blobs()[0])


def test_a_loop_that_promises_its_gradients_must_hand_them_over() -> None:
    model = Net()
    tdm = TDM(0.5).attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    tdm.begin_task(0, samples=40, epochs=1, losses=sparcl.Losses(lambda: torch.zeros(()), from_steps=True))
    with pytest.raises(ConfigError, match="take_gradients"):
        tdm.update()


def test_unknown_rankings_are_refused() -> None:
    for make in (lambda r: SparCL(ranking=r), lambda r: TDM(ranking=r), lambda r: DGM(ranking=r)):
        with pytest.raises(ConfigError, match="unknown ranking 'stale'; allowed: step, fresh"):
            make("stale")


def test_icarl_exemplars_in_the_tasks_own_pass_are_read_apart() -> None:
    learner, events, shares = watched(ICaRL(20), 40, 2, 4)
    assert learner.learned == 2
    assert all(share <= 4 / 3 for share in shares)
    assert events.count("importance.passed") == len(shares)


def test_a_task_pays_for_so_many_reads_and_always_for_one() -> None:
    """32 samples back once more in steps of 96: 2/9 of a step each, so the k-th at step 100 k / 9, from 1."""
    allowance, read = Allowance(), []
    for step in range(1, 60):
        if allowance.allows():
            allowance.pay(extra=32, samples=96)
            read.append(step)
        allowance.steps += 1
    assert read == [1, 23, 34, 45, 56]  # 22.2, 33.3, 44.4, 55.6
