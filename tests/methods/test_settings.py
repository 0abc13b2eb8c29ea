"""Published settings: the values of METHOD.md, and what is taken where there is none."""

from __future__ import annotations

import inspect

import pytest

from sparcl.errors import ConfigError
from sparcl.methods import METHODS
from sparcl.methods.method import DEFAULT_SIZE
from sparcl.methods.settings import PUBLISHED, published

BUFFERS = (200, 500, 5120)


@pytest.mark.parametrize(
    ("stream", "method", "column", "values"),
    [
        ("seq-cifar10", "er", "lr", (0.1, 0.1, 0.1)),
        ("seq-tinyimg", "er", "lr", (0.1, 0.03, 0.1)),
        ("seq-cifar10", "derpp", "lr", (0.03, 0.03, 0.03)),
        ("seq-tinyimg", "derpp", "lr", (0.03, 0.03, 0.03)),
        ("seq-cifar10", "derpp", "alpha", (0.1, 0.2, 0.1)),
        ("seq-cifar10", "derpp", "beta", (0.5, 0.5, 1.0)),
        ("seq-tinyimg", "derpp", "alpha", (0.1, 0.2, 0.1)),
        ("seq-tinyimg", "derpp", "beta", (1.0, 0.5, 0.5)),
        ("seq-cifar10", "der", "alpha", (0.3, 0.3, 0.3)),
        ("seq-cifar10", "agem", "lr", (0.03, 0.03, 0.03)),
        ("seq-tinyimg", "agem", "lr", (0.01, 0.01, 0.01)),
        ("seq-cifar10", "icarl", "lr", (0.1, 0.1, 0.03)),
        ("seq-tinyimg", "icarl", "lr", (0.03, 0.03, 0.03)),
        ("seq-cifar10", "fdr", "lr", (0.03, 0.03, 0.03)),
        ("seq-cifar10", "fdr", "alpha", (0.3, 1.0, 0.3)),
        ("seq-cifar10", "er-ace", "lr", (0.03, 0.03, 0.03)),
    ],
)
def test_they_are_the_fields(stream: str, method: str, column: str, values: tuple[float, ...]) -> None:
    assert tuple(published(stream, method, size)[column] for size in BUFFERS) == values


def test_the_authors_script_is_a_preset() -> None:
    script = published("seq-cifar10", "derpp", 500, "sparcl-script")
    assert (script["alpha"], script["beta"]) == (0.1, 0.5)
    with pytest.raises(ConfigError, match="unknown preset 'best'; allowed: sparcl-script"):
        published("seq-cifar10", "derpp", 500, "best")
    with pytest.raises(ConfigError, match="preset sparcl-script: no values for method 'er'; there are some for: derpp"):
        published("seq-cifar10", "er", 500, "sparcl-script")


def test_the_nearest_buffer_and_a_related_stream_stand_in() -> None:
    assert published("seq-tinyimg", "er", 450)["lr"] == 0.03
    assert published("seq-tinyimg", "er", 300)["lr"] == 0.1
    assert published("seq-fashion-mnist", "er", 200) == published("seq-mnist", "er", 200)
    assert published("holidays", "derpp", 500) == published("seq-cifar10", "derpp", 500)
    published("seq-cifar10", "er", 200)["lr"] = 7.0  # a copy
    assert published("seq-cifar10", "er", 200)["lr"] == 0.1


def test_a_method_made_without_settings_has_these() -> None:
    """Literals: a weight of 0 by default would be fine-tuning in disguise."""
    wanted = {
        "finetune": {},
        "joint": {},
        "er": {},
        "er-ace": {},
        "agem": {},
        "icarl": {},
        "der": {"alpha": 0.3},
        "derpp": {"alpha": 0.1, "beta": 0.5},
        "fdr": {"alpha": 0.3},
        "lwf": {"alpha": 1.0, "temperature": 2.0},
        "ewc": {"strength": 10.0, "gamma": 1.0},
        "packnet": {"pruned": 0.75},
        "lps": {"pruned": 0.75, "shared": 0.8, "rho": 0.0001, "mask_lr": 0.1},
    }
    for name, method in METHODS.items():
        parameters = inspect.signature(method.__init__).parameters.values()
        assert {p.name: p.default for p in parameters if isinstance(p.default, float)} == wanted[name], name
    assert DEFAULT_SIZE == 200


NOT_NEGATIVE = ("der.alpha", "derpp.alpha", "derpp.beta", "fdr.alpha", "ewc.strength", "lwf.alpha", "lps.rho")


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", [*NOT_NEGATIVE, "lps.mask_lr", "ewc.gamma", "lwf.temperature"])
def test_a_value_out_of_its_range_is_refused_with_what_is_allowed(name: str, value: float) -> None:
    method, option = name.split(".")
    with pytest.raises(ConfigError, match=f"^{option} {value} is not allowed for {method}; use .*(0|1)"):
        METHODS[method](**{option: value})


def test_the_ends_of_a_range_are_in_it_or_not() -> None:
    for name in NOT_NEGATIVE:
        method, option = name.split(".")
        assert getattr(METHODS[method](**{option: 0.0}), option) == 0.0
    assert METHODS["ewc"](gamma=1.0).gamma == 1.0
    with pytest.raises(ConfigError, match=r"gamma 1\.5 is not allowed for ewc; use a share from 0 to 1"):
        METHODS["ewc"](gamma=1.5)
    with pytest.raises(ConfigError, match=r"temperature 0\.0 is not allowed for lwf; use a number above 0"):
        METHODS["lwf"](temperature=0.0)


def test_every_method_has_settings_and_each_is_an_argument_of_it() -> None:
    for name, method in METHODS.items():
        assert published("seq-cifar10", name, 200)["lr"] > 0
        arguments = {*inspect.signature(method.__init__).parameters, "lr", "weight_decay", "source"}
        for (_, of, _), row in PUBLISHED.items():
            if of == name:
                assert row.keys() <= arguments
                assert row["source"]
