"""SparCL: the three parts together, their order, settings and state."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from toys import Net, blobs, make_learner, own_loop

from sparcl import Learner, kernels
from sparcl.errors import ConfigError
from sparcl.run import build
from sparcl.run.experiment import Experiment
from sparcl.sparsity import SET, SNIP, TDM, RigL, SparCL, Static
from sparcl.sparsity.patterns import Pattern
from sparcl.sparsity.sparcl import SETTINGS

BACKENDS = ["reference", *(["native"] if kernels.available() else [])]


@pytest.mark.parametrize("pattern", ["unstructured", "block"])
@pytest.mark.parametrize("epochs", [1, 5])
def test_each_part_fires_in_every_task_and_every_task_ends_at_exactly_s(
    epochs: int, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparcl.sparsity.tdm.STEPS_APART", 1)  # tasks are short here
    model = Net(classes=6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sparcl = SparCL(0.75, pattern=pattern).attach(model, optimizer, seed=1)
    told: list[tuple[str, dict[str, Any]]] = []
    sparcl.notify = lambda event, figures: told.append((event, figures))
    stream = blobs(tasks=3, per_class=100)
    own_loop(sparcl, model, optimizer, stream[:1], epochs=epochs)
    first = [event for event, _ in told]
    assert "tdm.expand" not in first
    for task in stream[1:]:
        told.clear()
        own_loop(sparcl, model, optimizer, [task], epochs=epochs)
        events = [event for event, _ in told]
        assert events[0] == "tdm.expand"
        assert events.count("tdm.expand") == 1
        assert events.count("tdm.update") == first.count("tdm.update") == 8
        assert events.count("ddr.remove") == 4
        assert sum(figures["removed"] for event, figures in told if event == "ddr.remove") == 60 == sparcl.removed
        assert events.count("dgm.choose") >= 9
        for i, event in enumerate(events):  # a mask update renews the choice of gradients at once
            assert event != "tdm.update" or events[i + 1] == "dgm.choose"
        for layer in sparcl.layers:
            assert len(layer.index) == round(0.25 * layer.parameter.numel())
            assert layer.chosen is not None


@pytest.mark.parametrize("pattern", ["unstructured", "block"])
def test_what_stays_of_a_mask_shrunk_at_a_tasks_end_keeps_the_choice_of_gradients(pattern: str) -> None:
    """A task of one step: its mask, expanded at its begin, shrinks after the step (what is recorded says so)."""
    model = Net(classes=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sparcl = SparCL(0.5, pattern=pattern).attach(model, optimizer, seed=1)
    updated: list[list[torch.Tensor]] = []

    def note() -> None:
        assert all(layer.chosen is not None for layer in sparcl.layers)
        updated.append([layer.index[layer.chosen] for layer in sparcl.layers])

    told: list[str] = []
    sparcl.notify = lambda event, _: told.append(event)
    own_loop(sparcl, model, optimizer, blobs(2), epochs=1, batch_size=40, each_step=note)
    assert told[-1] == "tdm.shrink"
    for layer, before in zip(sparcl.layers, updated[-1], strict=True):
        assert layer.chosen is not None
        assert layer.index[layer.chosen].tolist() == before[torch.isin(before, layer.index)].tolist()


def test_settings_of_the_nearest_published_sparsity_apply() -> None:
    for weights, row in ((0.5, 0.75), (0.75, 0.75), (0.9, 0.9), (0.99, 0.95)):
        tdm = SparCL(weights).tdm
        assert {key: getattr(tdm, key) for key in SETTINGS[row]} == SETTINGS[row]
        assert tdm.sparsity == weights


def test_magnitude_alone_is_an_ablation_of_tdm_only() -> None:
    sparcl = SparCL(0.9, use_gradients=False)
    assert (sparcl.tdm.alpha, sparcl.tdm.beta) == (0.0, 0.0)
    assert (sparcl.dgm.alpha, sparcl.dgm.beta) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "0 to 0.99"),
        ({"gradients": 1.0}, "0 to less than 1"),
        ({"samples": -1.0}, "0 to less than 1"),
        ({"pattern": "rows"}, "unstructured, block"),
        ({"pattern": "block", "block_size": 1}, "2 or more"),
        ({"block_size": 8}, "block size 8 goes with pattern block, not unstructured"),
        ({"block_size": 8, "pattern": Pattern(2)}, r"block size 8 goes with pattern block, not Pattern\(block=2\)"),
        ({"distribution": "even"}, "uniform, erk"),
        ({"ddr_score": "loss"}, "misclassified, forgetting"),
        ({"ddr_score": "loss", "samples": 0.0}, "misclassified, forgetting"),
        ({"ddr_score": "forgetting", "samples": 0.0}, "a share of 0 removes none; leave one out"),
    ],
)
def test_a_setting_out_of_range_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        SparCL(**options)
    assert "\n" not in str(caught.value)


def test_the_old_name_of_the_sparsity_is_refused_with_the_new_one() -> None:
    with pytest.raises(ConfigError, match=r"^SparCL takes sparsity=, no longer weights=$"):
        SparCL(weights=0.9)  # type: ignore[call-arg]


def test_one_default_sparsity() -> None:
    kinds = (SparCL, TDM, Static, SET, SNIP, RigL)
    defaults = {inspect.signature(kind.__init__).parameters["sparsity"].default for kind in kinds}
    assert defaults == {0.90} == {Experiment("seq-digits").resolve().sparsity}


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_tdm_masks_stay_no_gradient_is_asked_for_them_and_the_rest_goes_on(backend: str) -> None:
    told: list[str] = []

    def learn(sparsifier: Static | SparCL) -> Learner:
        learner = make_learner(
            model=Net(),
            sparsifier=sparsifier,
            backend=backend,
            epochs=None,
            steps=60,
            observers=[lambda e, _: told.append(e)],
        )
        for task in blobs():
            learner.learn(task)
        return learner

    def masks(learner: Learner) -> list[torch.Tensor]:
        return [layer.index for layer in learner.sparsifier.layers]

    without = learn(
        build.sparsifier(Experiment("seq-digits", sparsity=0.7, importance="none", first_mask="magnitude").resolve())
    )
    assert isinstance(without.sparsifier, SparCL)
    assert "dgm.choose" in told
    assert not {"tdm.update", "tdm.expand", "tdm.shrink"} & set(told)
    told.clear()
    alone = learn(SparCL(0.7, p_intra=0.0, p_inter=0.0, gradients=0.0, samples=0.0, first_mask="magnitude"))
    assert not [event for event in told if event.startswith(("tdm", "dgm", "importance"))]
    fixed = learn(Static(0.7, first_mask="magnitude"))
    for one, other in ((without, alone), (alone, fixed)):
        assert all(torch.equal(a, b) for a, b in zip(masks(one), masks(other), strict=True))
    of_alone, of_fixed = alone.model.parameters(), fixed.model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(of_alone, of_fixed, strict=True)), "it is a static mask, to the bit"
