"""What a stranger's text may not do where it is shown."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from made_runs import make_run

from sparcl.main import _main
from sparcl.report import group, load, neutral
from sparcl.report.tables import as_csv, as_markdown


@pytest.mark.parametrize("text", ["\x1b[31mred", "\x9b2J", "a\u202eb", "\x07", "\x7f", "\ud800"])
def test_a_terminal_is_given_no_orders(text: str) -> None:
    assert neutral.terminal(text).isprintable()
    assert neutral.terminal(neutral.terminal(text)) == neutral.terminal(text)


@pytest.mark.parametrize(
    ("name", "shown"), [("läufe 界".encode(), "läufe 界"), (b"a\xff\xc3", "a\\xff\\xc3"), (b"\xc2\x9b2J", "\\x9b2J")]
)
def test_bytes_that_python_did_not_decode_are_letters_or_spelled_out(name: bytes, shown: str) -> None:
    for encoding in ("utf-8", "ascii"):  # ascii: as in the locale C
        text = name.decode(encoding, "surrogateescape")
        assert neutral.terminal(text) == shown


@pytest.mark.parametrize("text", ["äöü 日本 ±–×", "a\nb\tc"])
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert neutral.terminal(text) == text


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "\r=1"])
def test_a_spreadsheet_computes_nothing(text: str) -> None:
    assert neutral.csv_cell(text).startswith("'")


@pytest.mark.parametrize("value", ["derpp", 3, -0.5, None, "a=b"])
def test_other_cells_are_themselves(value: object) -> None:
    assert neutral.csv_cell(value) == value


def test_markdown_shows_text_and_obeys_none() -> None:
    shown = neutral.markdown("<script>x</script> [a](b) *c* | `d` $e$\n# f")
    assert "<" not in shown
    assert "\n" not in shown
    assert all(f"\\{c}" in shown for c in "[]*|`$#")


def test_a_report_of_an_odd_record_is_neutral(tmp_path: Path) -> None:
    odd = "=cmd()<img src=x>\x1b[2J|"
    make_run(tmp_path / "run", {"method": odd}, method=odd)
    groups = group(load([tmp_path])[0])
    (row,) = list(csv.DictReader(io.StringIO(as_csv(groups))))
    assert row["method"].startswith("'=cmd()")
    markdown = as_markdown(groups)
    assert "<img" not in markdown
    assert "\x1b" not in markdown + row["method"]


def test_a_refusal_does_not_pass_on_escape_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["run", "seq-digits", "--method", "\x1b[31mx\u202e"]) == 2
    assert _main(["report", "\x1b[31mabsent"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 2
    assert "\x1b" not in said
    assert "\u202e" not in said


@pytest.mark.parametrize("form", ["table", "markdown", "csv"])
def test_figures_near_the_largest_float_stop_no_report(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        make_run(tmp_path / str(seed), {"seed": seed}, seed=seed, class_il=(-1) ** seed * 1.7e308, forgetting=1.7e308)
    assert _main(["report", str(tmp_path), "--format", form]) == 0
    assert "derpp" in capsys.readouterr().out
