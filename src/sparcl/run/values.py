"""Values of the command line that are lists: typed as a,b,c, or one at a time as NAME=NUMBER."""

from __future__ import annotations

from sparcl.errors import ConfigError


def sizes(text: str) -> int | tuple[int, ...]:
    """`2` or `4,3,3`.

    Raises:
        ConfigError: it is neither.
    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--classes-per-task {text!r:.60} is not allowed; use 2 or 4,3,3") from None
    return numbers if len(numbers) > 1 else numbers[0]


def class_names(text: str) -> tuple[str, ...]:
    """`cat,dog,cow`; a name that has a comma goes into a configuration."""
    return tuple(part.strip() for part in text.split(","))


def named_numbers(pairs: list[str], option: str) -> dict[str, float]:
    """NAME=NUMBER pairs.

    Raises:
        ConfigError: one is none, or a name is given twice.
    """
    options: dict[str, float] = {}
    for pair in pairs:
        name, _, number = pair.partition("=")
        if name in options:
            raise ConfigError(f"--{option} {name} is given twice: leave one of them out")
        try:
            options[name] = float(number)
        except ValueError:
            raise ConfigError(f"--{option} {pair!r} is not NAME=NUMBER") from None
    return options
