"""Command lines for `sparcl-device`, right ones and wrong ones."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OUT = "out.sparcl"
COMMANDS: dict[str, tuple[int, tuple[str, ...]]] = {
    "info": (1, ()),
    "predict": (2, ("--threads", "--logits")),
    "evaluate": (2, ("--threads",)),
    "learn": (
        2,
        ("--threads", "--epochs", "--steps", "--max-seconds", "--save-every", "--out"),
    ),
    "bench": (1, ("--threads", "--batch", "--steps", "--json")),
    "gradients": (3, ("--threads",)),
}
"""Of each: how many files it needs, and the options that have an effect: the samples are packed, no task has begun."""
BUDGETS = {"--epochs", "--steps", "--max-seconds"}
FLAGS = {"--resize", "--logits", "--new-task", "--json"}
GOOD: dict[str, tuple[Any, ...]] = {
    "--threads": (1, 2, 3),
    "--epochs": (1,),
    "--steps": (1, "2.0", "1e0"),
    "--max-seconds": (0.3, "5e-1"),  # many steps: seconds for less than half of one are refused
    "--save-every": (0, 1e12),
    "--batch": (2, 5),
}
NO_NUMBERS = ("", "x", "1x", "nan", "inf", "-inf", "1e999", "--", "9" * 400, "\x1b[2J", "ö", "-1")
BAD: dict[str, tuple[Any, ...]] = {
    "--threads": (*NO_NUMBERS, 0, 1025, 1.5),
    "--epochs": (*NO_NUMBERS, 0, 0.5, 1e13),
    "--steps": (*NO_NUMBERS, 0, 0.5, 1e13),
    "--max-seconds": (*NO_NUMBERS, 0, 1e10),
    "--save-every": (*NO_NUMBERS, 1e13),
    "--batch": (*NO_NUMBERS, 0, 65537, 2.5),
    "--out": ("",),
}
UNKNOWN = ("--", "--x", "--Steps", "--step", "--steps=1", "--\x1b[2J", "--" + "ö" * 300)


@dataclass
class Call:
    """Arguments; whether they must be refused; the files they make, and whether the model file changes, if not."""

    words: list[object]
    wrong: bool
    makes: tuple[str, ...]
    changes: bool


def call(rng: random.Random, model: Path, samples: Path) -> Call:
    """A command line in which at most one thing is wrong, or two budgets are."""
    command = rng.choice(list(COMMANDS))
    count, allowed = COMMANDS[command]
    places: list[object] = [model, samples, model.with_name("g.sparcl")][:count]
    given = {name: good(rng, name, model) for name in allowed if rng.random() < 0.4}
    wrong = len(given.keys() & BUDGETS) > 1
    options = [words for name, value in given.items() for words in ([name] if name in FLAGS else [name, value])]
    kind = rng.randrange(10)
    if kind == 0:
        wrong, command = True, rng.choice(("", command.upper(), command + "\n", command[:-1], "-h"))
    elif kind == 1:
        wrong, places = True, wrong_places(rng, places)
    elif kind == 2 and (others := sorted((GOOD.keys() | FLAGS | {"--out"}) - set(allowed))):
        name = rng.choice(others)
        wrong, options = True, [*options, name, *([] if name in FLAGS else [good(rng, name, model)])]
    elif kind in (3, 4) and (numbered := [name for name in allowed if name in BAD]):
        name = rng.choice(numbered)
        wrong, options = True, [*options, name, *rng.choice(([rng.choice(BAD[name])], []))]
    elif kind == 5:
        wrong, options = True, [rng.choice(UNKNOWN), *options]
    makes = [OUT] * ("--out" in given) + ["g.sparcl"] * (command == "gradients")
    return Call([command, *places, *options], wrong, tuple(makes), command == "learn" and "--out" not in given)


def good(rng: random.Random, name: str, model: Path) -> Any:
    """A value that the option takes; None for one that takes none."""
    return None if name in FLAGS else model.with_name(OUT) if name == "--out" else rng.choice(GOOD[name])


def wrong_places(rng: random.Random, places: list[object]) -> list[object]:
    """One too many or too few, or one of the first two that is not what it has to be."""
    kind = rng.randrange(3)
    if kind == 0:
        return [*places, places[0]]
    if kind == 1:
        return places[1:]
    at = rng.randrange(min(2, len(places)))
    other = places[1 - at] if len(places) > 1 else "/dev/null"
    return [*places[:at], rng.choice(("", "/dev/null", "/nowhere/x", other)), *places[at + 1 :]]
