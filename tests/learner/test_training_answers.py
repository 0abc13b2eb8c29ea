"""A model that answers otherwise while it trains, as Inception and GoogLeNet with their auxiliary classifiers do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from nn.native import needs_native
from torch import Tensor, nn
from toys import Net, blobs, make_learner

from sparcl.errors import ConfigError


class Auxiliary(nn.Module):
    """Answers with what `change` makes of the logits while it trains."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.change, self.auxiliary = Net(), change, True

    def forward(self, x: Tensor) -> Any:
        logits = self.net(x)
        return self.change(logits) if self.training and self.auxiliary else logits


CHANGES = [
    (lambda logits: (logits, logits), "a tuple"),
    (lambda logits: {"logits": logits}, "a dict"),
    (lambda logits: logits[:, :, None], r"shape \[\d+, 4, 1\]"),
]


NATIVE = pytest.param({"backend": "native"}, marks=needs_native)


@pytest.mark.parametrize("options", [{}, {"micro_batch": 4}, {"sparsifier": None}, NATIVE])
@pytest.mark.parametrize(("change", "given"), CHANGES)
def test_it_is_one_line_and_may_be_mended(change: Any, given: str, options: dict[str, Any]) -> None:
    model = Auxiliary(change)
    learner = make_learner(model=model, epochs=1, **options)
    for _ in range(2):
        with pytest.raises(
            ConfigError, match=rf"the model, while it trains, answers a batch of \d with {given}; logits"
        ):
            learner.learn(blobs()[0])
    assert learner.steps == 0
    model.auxiliary = False
    learner.learn(blobs()[0])
    assert (learner.learned, learner.steps) == (1, 5)


@pytest.mark.parametrize(("change", "given"), CHANGES)
def test_a_stream_refuses_it_too(change: Any, given: str) -> None:
    samples = blobs()[0].train
    with pytest.raises(ConfigError, match=rf"while it trains, answers a batch of 8 with {given}"):
        make_learner(model=Auxiliary(change)).observe(samples.inputs[:8], samples.labels[:8])
