"""docs/results.md from the records under experiments/results: `make results`.

    python experiments/results.py [--collect RUNS NAME]

`--collect` first copies config.toml and result.json of every finished run under RUNS to experiments/results/NAME. Every
number of the page, its summary included, is computed from the records, but for a table's findings: `NAME.md` beside its
sweep.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparcl.report import Group, group, load
from sparcl.report.records import CONFIG, RESULT, Record
from sparcl.report.tables import as_markdown, hardware, stat

sys.path.insert(0, str(Path(__file__).parent))
import equal_section
from student import student as student
from student import welch

HERE = Path(__file__).parent
RECORDS = HERE / "results"
PAGE = HERE.parent / "docs" / "results.md"

TABLES = {
    "table1": "The published protocol in full: all images, 50 epochs a task, width 64 (`sparcl run seq-cifar10"
    " --sparsity 0.95 --threads 1 --data CIFAR10`). Published are, for the row of .95, 65.18 Class-IL and"
    " 92.97 Task-IL (five seeds, the original files). The images here are CIFAR-10 compressed once more as"
    " JPEG, so that absolute accuracies lie under those; by how much is not known, as no dense row has"
    " been run. Without `--single-head` and `--first-mask magnitude` a row has neither the mask on other"
    " tasks' logits nor the first mask of the released code. The runs shared their machine and were"
    " stopped and resumed many times: for time see performance.md.",
    "table1-small": "Split CIFAR-10, small. The images are CIFAR-10 compressed once more as JPEG, so that absolute"
    " accuracies lie under those on the original files; a few of its images, a few epochs: the rows are to be compared"
    " with each other, not with the published figures. Every run left out an epoch's last partial batch (12 of 12.5"
    " batches), the dense hosts too, which by default train on it now. A-GEM is ours: its memory is filled at a task's"
    " end up to the buffer's size, where Mammoth stores one batch of samples a task. RigL's and SNIP's executed FLOPs"
    " leave out a forward pass of the prunable layers at each of their rankings, which newer runs are charged. Records"
    " of DDR by forgetting events were withdrawn: the score was not the released code's. Its seconds are of a machine"
    " that did other work beside and paused some of these runs for minutes: for time see performance.md.",
    "hosts-digits": "SparCL under every rehearsal method, beside its dense host: embedded digits, 290 images a task, a"
    " network of 66,000 weights. Every run left out an epoch's last partial batch. A-GEM's memory is ours: filled at a"
    " task's end up to the buffer's size, where Mammoth stores one batch of samples a task.",
}
"""What is known of a table's data beside what its records say, in the order of the page."""

PLAIN: dict[str, Any] = {
    "pattern": "unstructured",
    "buffer_size": 200,
    "single_head": False,
    "sample_removal": 0.3,
    "gradient_sparsity": 0.2,
    "importance": "cwi",
    "ddr_score": "misclassified",
    "distribution": "uniform",
    "first_mask": "random",
}
"""The whole published method; a claim names what it changes."""


LAST_BITS = 2.3
"""Points of Class-IL, one standard deviation, by which a run of table1-small moves when only its last bits change."""

LEVEL = 0.05
"""A difference is clear where chance alone makes one as large less often than this (Student's t, two-sided)."""

Rows = Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""The settings of a row, or of several whose runs are pooled."""


@dataclass(frozen=True)
class Claim:
    """That `what` is at least as accurate as `than`, less `margin` points."""

    text: str
    what: Rows
    than: Rows
    margin: float = 0.0


def run(method: str, sparsifier: str = "dense", sparsity: float | None = None, **changes: Any) -> dict[str, Any]:
    """What a record's settings must be, where it has them."""
    return {**PLAIN, "method": method, "sparsifier": sparsifier, "sparsity": sparsity, **changes}


def _hosts() -> Iterable[Claim]:
    for method, name in (("derpp", "DER++"), ("er", "ER")):
        for sparsity in (0.75, 0.90, 0.95):
            margin = 1.0 if sparsity == 0.95 else 0.0
            goal = "within one point of" if margin else "not below"
            text = f"SparCL-{name} at {sparsity:.2f} is {goal} dense {name}"
            yield Claim(text, run(method, "sparcl", sparsity), run(method), margin)
    for change, text in (
        ({"sample_removal": 0.0}, "without DDR"),
        ({"sample_removal": 0.0, "gradient_sparsity": 0.0}, "with TDM alone"),
    ):
        yield Claim(
            f"SparCL-DER++ at 0.90 {text} is not below dense DER++",
            run("derpp", "sparcl", 0.90, **change),
            run("derpp"),
        )


CLAIMS = (
    Claim("ER is above finetune", run("er"), run("finetune")),
    Claim("DER++ is above ER", run("derpp"), run("er")),
    Claim("joint is above DER++", run("joint"), run("derpp")),
    *_hosts(),
    *(
        Claim(f"SparCL-DER++ at {s:.2f} is above {name}-DER++", run("derpp", "sparcl", s), run("derpp", rival, s))
        for s in (0.90, 0.75, 0.95)
        for rival, name in (("snip", "SNIP"), ("rigl", "RigL"), ("set", "SET"), ("static", "static"))
    ),
    Claim(
        "blocks of 4 are not below unstructured (SparCL-DER++ .90)",
        run("derpp", "sparcl", 0.90, pattern="block"),
        run("derpp", "sparcl", 0.90),
    ),
    *(
        Claim(
            f"SparCL-DER++ .90 is not below itself {text}",
            run("derpp", "sparcl", 0.90),
            run("derpp", "sparcl", 0.90, **change),
        )
        for text, change in (
            ("without DDR", {"sample_removal": 0.0}),
            ("without DGM", {"gradient_sparsity": 0.0}),
            ("with TDM alone", {"sample_removal": 0.0, "gradient_sparsity": 0.0}),
            ("without DDR, trained for as few steps", {"sample_removal": 0.0, "epochs": 4}),
            ("with magnitude for CWI", {"importance": "magnitude"}),
            ("with the single-head loss", {"single_head": True}),
            ("with forgetting events for misclassifications", {"ddr_score": "forgetting"}),
        )
    ),
    Claim(
        "pooled: SparCL-DER++ with DDR (.75, .90, .95, blocks, ERK, without DGM, magnitude) is not below the rivals"
        " (SNIP and RigL at .75, .90, .95, SET and static at .90)",
        [
            *(run("derpp", "sparcl", s) for s in (0.75, 0.90, 0.95)),
            *(
                run("derpp", "sparcl", 0.90, **change)
                for change in (
                    {"pattern": "block"},
                    {"distribution": "erk"},
                    {"gradient_sparsity": 0.0},
                    {"importance": "magnitude"},
                )
            ),
        ],
        [
            *(run("derpp", rival, s) for rival in ("snip", "rigl") for s in (0.75, 0.90, 0.95)),
            *(run("derpp", rival, 0.90) for rival in ("set", "static")),
        ],
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """A claim against the records: the difference of the means in points, its standard error and p (Welch)."""

    claim: Claim
    seeds: tuple[int, int] = (0, 0)
    difference: dict[str, float] = field(default_factory=dict)
    error: dict[str, float | None] = field(default_factory=dict)
    p: dict[str, float | None] = field(default_factory=dict)

    def verdict(self, name: str) -> str:
        """Clear where the difference from the goal is more than chance alone would make it."""
        if name not in self.difference:
            return "not run"
        p = self.p[name]
        answer = "holds" if self.difference[name] + self.claim.margin >= 0 else "missed"
        return answer if p is not None and p < LEVEL else f"{answer}, within noise"

    def chance(self, name: str) -> str:
        """p, for the table."""
        p = self.p.get(name)
        return "–" if p is None else f"{p:.3f}" if p >= 0.001 else "< .001"

    def cell(self, name: str) -> str:
        if name not in self.difference:
            return "–"
        error = self.error[name]
        return f"{self.difference[name]:+.2f}" + ("" if error is None else f" ± {error:.2f}")


def compare(claim: Claim, records: Sequence[Record]) -> Comparison:
    epochs = Counter(r.config.get("epochs") for r in records).most_common(1)[0][
        0
    ]  # the table's, where a claim names none
    sides = [_side(rows, records, epochs) for rows in (claim.what, claim.than)]
    if not all(sides):
        return Comparison(claim)
    difference: dict[str, float] = {}
    errors: dict[str, float | None] = {}
    ps: dict[str, float | None] = {}
    for name in ("class_il", "task_il"):
        a, b = (stat(r.figure("", name) for r in side) for side in sides)
        if a.mean is not None and b.mean is not None:
            difference[name] = a.mean - b.mean
            errors[name] = ps[name] = None
            if a.std is not None and b.std is not None:
                variances = a.std**2 / a.n, b.std**2 / b.n
                errors[name] = math.sqrt(sum(variances))
                ps[name] = welch(difference[name] + claim.margin, variances, (a.n, b.n))
    return Comparison(claim, (len(sides[0]), len(sides[1])), difference, errors, ps)


def _side(rows: Rows, records: Sequence[Record], epochs: Any) -> list[Record]:
    """The runs of a row, or of all the rows that are pooled; none where one of them was not run."""
    wanted = [rows] if isinstance(rows, Mapping) else rows
    found = [[r for r in records if _matches(r, {"epochs": epochs, **row})] for row in wanted]
    return [r for row in found for r in row] if all(found) else []


def _matches(record: Record, wanted: Mapping[str, Any]) -> bool:
    """A setting that the run does not have (a buffer of finetune's, DDR of RigL's) is no difference."""
    return all(record.config.get(key) == value for key, value in wanted.items() if key in record.config)


def page() -> str:
    """The whole of docs/results.md."""
    parts = ["# Results", "", "Written by `make results` from the records under `experiments/results`; not by hand."]
    if equal := load([RECORDS / "equal-time"])[0]:
        parts += ["", *equal_section.section(equal)]
    names = list(TABLES)
    for folder in sorted((p for p in RECORDS.iterdir() if p.name in names), key=lambda p: names.index(p.name)):
        records, problems = load([folder])
        if records:
            parts += ["", *_section(folder.name, records)]
        parts += [f"\nLeft out: {problem}" for problem in problems]
    return "\n".join(line for part in parts for line in _wrapped(part)) + "\n"


def _wrapped(part: str) -> Iterable[str]:
    """Its lines, prose of at most 100 characters; tables stay as they are."""
    for line in part.split("\n"):
        if len(line) <= 100 or line.startswith("|"):
            yield line
        else:
            indent = "  " if line.startswith("- ") else ""
            yield from textwrap.wrap(
                line, 100, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
            )


def _section(name: str, records: Sequence[Record]) -> list[str]:
    groups = group(records)
    comparisons = [compare(claim, records) for claim in CLAIMS]
    made = [c for c in comparisons if c.difference]
    if not name.startswith("table1"):
        comparisons = made  # a small table of its own plans no other
    return [
        f"## {name}",
        "",
        TABLES.get(name, ""),
        "",
        "### Summary",
        "",
        *(f"- {line}" for line in [*_setting(records, groups), *_accuracy(made, comparisons), *_cost(groups)]),
        *_claims(made),
        *_findings(name),
        "",
        "### Table",
        "",
        as_markdown(groups).rstrip("\n"),
    ]


def _claims(made: Sequence[Comparison]) -> list[str]:
    if not made:
        return []
    return [
        "",
        "### Claims",
        "",
        "Difference of the means in points ± its standard error, and the chance p that runs of equal means differ as"
        f" much (Welch's t test, two-sided): noise from {LEVEL} on. With {len(made)} claims and two accuracies some p"
        " below that are to be expected by chance. Pooled rows count each run once, so that the rows' own differences"
        f" are part of the error. In table1-small a run moves by {LAST_BITS} points of Class-IL (one standard"
        " deviation) when only its last bits change, by another build or number of threads: seeds are no pairs.",
        "",
        "| claim | n | Class-IL | p | | Task-IL | p | |",
        "|---|---:|---:|---:|---|---:|---:|---|",
        *(
            f"| {c.claim.text} | {c.seeds[0]}, {c.seeds[1]} | {c.cell('class_il')} | {c.chance('class_il')} |"
            f" {c.verdict('class_il')} | {c.cell('task_il')} | {c.chance('task_il')} | {c.verdict('task_il')} |"
            for c in made
        ),
    ]


def _findings(name: str) -> list[str]:
    """What was looked into where a claim is missed: written by hand, beside the sweep's file."""
    file = HERE / f"{name}.md"
    return ["", "### Findings", "", file.read_text(encoding="utf-8").rstrip()] if file.exists() else []


def _setting(records: Sequence[Record], groups: Sequence[Group]) -> list[str]:
    seeds = sorted({r.seed for r in records})
    complete = sum(len(g.records) == len(seeds) for g in groups)
    said = {k: sorted({str(r.config.get(k, "all")) for r in records}) for k in ("epochs", "limit_per_class", "width")}
    return [
        f"Data and network: {', '.join(sorted({g.stream for g in groups}))}, images a class:"
        f" {', '.join(said['limit_per_class'])}; epochs a task: {', '.join(said['epochs'])}; width:"
        f" {', '.join(said['width'])}.",
        f"{len(records)} run(s), seeds {', '.join(map(str, seeds))}; {complete} of {len(groups)} rows have every seed.",
        f"Hardware: {'; '.join(hardware(groups))}.",
    ]


def _accuracy(made: Sequence[Comparison], planned: Sequence[Comparison]) -> list[str]:
    lines = []
    for name, label in (("class_il", "Class-IL"), ("task_il", "Task-IL")):
        by_verdict: dict[str, list[str]] = {}
        for c in made:
            by_verdict.setdefault(c.verdict(name), []).append(c.claim.text)
        for verdict, title in (
            ("holds", "reproduced clearly"),
            ("holds, within noise", "holds in the mean, but within noise"),
            ("missed, within noise", "missed in the mean, but within noise"),
            ("missed", "clearly not reproduced"),
        ):
            if verdict in by_verdict:
                lines.append(f"{label}, {title}: {'; '.join(by_verdict[verdict])}.")
    if len(made) < len(planned):
        lines.append(f"{len(planned) - len(made)} of {len(planned)} comparisons have no records yet.")
    return lines


def _cost(groups: Sequence[Group]) -> list[str]:
    """Executed FLOPs of the plain SparCL rows, as shares of their dense host's."""
    method = {key: value for key, value in PLAIN.items() if key not in ("pattern", "buffer_size")}
    plain = [g for g in groups if g.sparsifier == "sparcl" and _matches(g.records[0], method) and g.share_of_dense.mean]
    shares = [f"{g.method} {g.sparsity:.2f} {g.pattern} (buffer {g.buffer}) {g.share_of_dense.mean:.1%}" for g in plain]
    return [f"FLOPs executed, of the dense host's: {', '.join(shares)}."] if shares else []


def collect(runs: Path, name: str) -> int:
    """Copy the records of finished runs; how many there are."""
    records, _ = load([runs])
    for record in records:
        to = RECORDS / name / record.path.name
        to.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(record.path / RESULT, to / RESULT)
        lines = (record.path / CONFIG).read_text(encoding="utf-8").splitlines(keepends=True)
        settings = [line for line in lines if not line.startswith("data = ")]  # where it lay on that machine
        (to / CONFIG).write_text("".join(settings), encoding="utf-8")
    return len(records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", nargs=2, metavar=("RUNS", "NAME"))
    arguments = parser.parse_args()
    if arguments.collect:
        print(f"{collect(Path(arguments.collect[0]), arguments.collect[1])} records")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    if drawn := equal_section.figure(load([RECORDS / "equal-time"])[0]):
        (PAGE.parent / "pictures" / "equal-time.svg").write_text(drawn, encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
