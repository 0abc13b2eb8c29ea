"""What all methods share: the single-head switch, the registry, refusals; fine-tuning and joint training."""

from __future__ import annotations

import pytest
import torch
from lent import batch, cross_entropy, lend, second_task_of
from toys import Net, blobs

from sparcl.errors import ConfigError
from sparcl.methods import DER, ER, METHODS, DERpp, Finetune, Joint, find
from sparcl.methods.method import only


def test_only_masks_all_other_classes() -> None:
    logits = torch.arange(8.0).view(2, 4)
    assert only(logits, (1, 2)).tolist() == [[-torch.inf, 1.0, 2.0, -torch.inf], [-torch.inf, 5.0, 6.0, -torch.inf]]


@pytest.mark.parametrize("single_head", [False, True])
def test_finetune_is_the_tasks_loss_and_remembers_nothing(single_head: bool) -> None:
    method, model = Finetune(single_head=single_head), Net()
    lend(method, model)
    now = batch(blobs()[1], 0)
    loss, logits = method.loss(now)
    own = slice(2, 4) if single_head else slice(0, 4)
    expected = cross_entropy(model(now.inputs)[:, own], now.labels - (2 if single_head else 0))
    torch.testing.assert_close(loss, expected)
    assert logits.shape == (6, 4)
    method.after_step(now, logits)
    assert method.buffer is None
    assert method.replay_importance_loss() is None
    assert method.state_dict() == {}


@pytest.mark.parametrize("kind", [Finetune, ER, DER, DERpp])
def test_single_head_is_off_by_default_and_importance_is_always_single_head(kind: type[Finetune]) -> None:
    method = kind()
    assert not method.single_head
    model, task, _, _ = second_task_of(method)
    now = batch(task, 2)
    expected = cross_entropy(model(now.inputs)[:, 2:], now.labels - 2)
    torch.testing.assert_close(method.task_importance_loss(now), expected)


def test_joint_learns_one_task_that_holds_all() -> None:
    joint = Joint()
    assert joint.learns_all_at_once
    first, second = blobs()
    joint.begin_task(first)
    with pytest.raises(ConfigError, match="merged"):
        joint.begin_task(second)


@pytest.mark.parametrize("kind", [ER, DER, DERpp])
def test_a_replay_method_without_a_buffer_is_refused_in_one_line(kind: type[ER]) -> None:
    with pytest.raises(ConfigError, match=rf"{kind.name}: a replay method needs 1 or more") as caught:
        kind(0)
    assert "\n" not in str(caught.value)


def test_a_method_of_another_learner_is_refused_with_what_it_remembers() -> None:
    method = DERpp(6)
    lend(method, Net())
    with pytest.raises(ConfigError, match="this derpp belongs to another Learner"):
        lend(method, Net())


@pytest.mark.parametrize(("name", "groups"), [("agem", 5), ("fdr", 5), ("icarl", 10)])
def test_a_buffer_too_small_for_the_stream_is_known_before_it(name: str, groups: int) -> None:
    METHODS[name](groups).check_stream(5, 10)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=f"one sample of {groups} tasks or classes each; use {groups} or more"):
        METHODS[name](groups - 1).check_stream(5, 10)  # type: ignore[call-arg]
    METHODS["er"](2).check_stream(5, 10)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["agem", "fdr"])
def test_a_buffer_too_small_for_one_more_task_is_refused_before_its_training(name: str) -> None:
    method, stream = METHODS[name](2), blobs(tasks=3)  # type: ignore[call-arg]
    lend(method, Net())
    for task in stream[:2]:
        method.begin_task(task)
        method.end_task(task)
    with pytest.raises(ConfigError, match="use 3 or more"):
        method.begin_task(stream[2])


def test_methods_are_found_by_name_and_unknown_ones_list_the_names() -> None:
    assert {find(name).name for name in METHODS} == set(METHODS)
    assert find("derpp") is DERpp
    with pytest.raises(ConfigError, match="finetune, joint, er"):
        find("derpppp")
