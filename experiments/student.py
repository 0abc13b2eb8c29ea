"""Student's t: whether two means differ by more than chance alone would make them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def welch(difference: float, variances: tuple[float, float], runs: tuple[int, int]) -> float:
    """p of a difference of two means with these variances (of the means): Welch's t test, two-sided."""
    total = sum(variances)
    if total == 0.0:
        return 1.0 if difference == 0.0 else 0.0
    freedom = total**2 / sum(v**2 / (n - 1) for v, n in zip(variances, runs, strict=True))
    return student(difference / math.sqrt(total), freedom)


def compared(values: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """How far the mean of some runs (two or more) lies above that of others, and `welch`'s p of it."""
    difference = statistics.mean(values) - statistics.mean(others)
    spread = statistics.variance(values) / len(values), statistics.variance(others) / len(others)
    return difference, welch(difference, spread, (len(values), len(others)))


def paired(differences: Sequence[float]) -> float:
    """p of differences of pairs (two or more) that are 0 in the mean: Student's t test, two-sided."""
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return student(statistics.mean(differences) / error, len(differences) - 1) if error else 1.0


def shown(p: float) -> str:
    """p with three digits, as far as they go."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def student(t: float, freedom: float) -> float:
    """P(|T| > |t|) of Student's t with `freedom` degrees of freedom.

    With t = √freedom · tan θ the density is in proportion to cos θ to the power of freedom - 1 (Simpson's rule).
    """
    theta, steps = math.atan(abs(t) / math.sqrt(freedom)), 2000

    def area(to: float) -> float:
        at = [math.cos(to * i / steps) ** (freedom - 1) for i in range(steps + 1)]
        return to / steps / 3 * (at[0] + at[-1] + 4 * sum(at[1:-1:2]) + 2 * sum(at[2:-1:2]))

    return max(0.0, 1.0 - area(theta) / area(math.pi / 2))
