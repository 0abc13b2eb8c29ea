"""The pages of docs/ hold what they show: their Python runs, their commands parse, their links lead somewhere."""

import re
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import typer
from own_parts import forgotten
from pages import PAGES, ROOT, anchors, blocks, commands, links, prose

import sparcl
from sparcl.cli import app
from sparcl.main import _main
from sparcl.run.experiment import Experiment
from sparcl.run.toml import read_toml

RUN = ["start", "own-data", "on-device", "extending", "coming-from"]
NEW = [*RUN, "index", "choosing", "faq", "reference"]
MORE = [p for folder in ("csrc", "tests", "experiments") for p in (ROOT / folder).rglob("*.mk")]
KNOWN_TARGETS = set(
    re.findall(
        r"^([a-z][a-z0-9-]*):",
        "\n".join(p.read_text("utf-8") for p in [ROOT / "Makefile", *ROOT.glob("*.mk"), *MORE]),
        re.MULTILINE,
    )
)


def run(page: str) -> dict:
    """The names that a page's Python, top to bottom, leaves behind."""
    names: dict = {"__name__": page}
    for block in blocks(ROOT / "docs" / f"{page}.md", "python"):
        exec(block, names)
    return names


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of images, as own-data.md has it, where the page runs."""
    image = pytest.importorskip("PIL.Image")
    draw = np.random.default_rng(0)
    for split, kind, k in [(s, c, k) for s in ("train", "test") for c in ("cat", "dog") for k in range(3)]:
        where = tmp_path / "photos" / split / kind
        where.mkdir(parents=True, exist_ok=True)
        image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(where / f"{k}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_mine(folder):
    """mine.py, of the blocks of extending.md that are for it."""
    parts = [b for b in blocks(ROOT / "docs" / "extending.md", "python") if b.startswith("# mine.py")]
    (folder / "mine.py").write_text("\n\n".join(parts))


def equal(a, b) -> bool:
    """Whether two Learners have the same weights, to the bit."""
    one, other = a.model.state_dict(), b.model.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_start_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("start")
    assert "mean of 5 tasks" in capsys.readouterr().out


@pytest.mark.usefixtures("photos")
def test_own_data_runs(capsys):
    names = run("own-data")
    assert [len(task.classes) for task in names["named"]] == [3, 2, 1]
    assert (names["untested"].tested, names["mapped"].lazy, names["from_dataset"].lazy) == (False, True, True)
    assert names["photos"].class_names == ("cat", "dog")
    assert "mean of 3 tasks" in capsys.readouterr().out
    assert equal(names["again"], names["learner"])


def test_on_device_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run("on-device")
    assert names["there"].classes.names == ["cup", "hand", "dog"]
    assert names["there"].steps > names["desk"].steps
    assert sparcl.Learner.load("to-the-device").learned == 2
    assert names["timed"].steps == names["timed"].pace[0][-1] > 1
    assert names["learner"].classes.names == ["cup", "hand", "dog"]
    assert names["same"].shape == (20, 3)
    assert names["live"].classes.names == ["cup", "hand", "dog"]
    assert names["live"].observed == 61
    assert sparcl.Learner.load("live").observed == 61
    assert names["measured"].samples[-1] == names["by_hand"].observed > 100
    assert equal(names["again"], names["learner"])


def test_the_method_that_extending_adds_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run("extending")
    assert names["again"].method.done == names["learner"].method.done == 2
    assert equal(names["again"], names["learner"])
    assert len(names["losses"]) == names["watched"].steps > 0


def test_the_sparsifier_that_extending_adds_moves_and_keeps_its_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run("extending")
    kind, learner = names["Hubs"], names["sparse"]
    events = []
    other = names["sparcl"].Learner(
        names["nn"].ConvNet(10), sparsifier=kind(0.90), epochs=3, observers=[lambda *event: events.append(event)]
    )
    first = [layer.index.clone() for layer in other.sparsifier.layers]
    other.learn(names["tasks"][0])
    assert [figures["moved"] > 0 for event, figures in events if event == "hubs.update"] == [True, True]
    assert not all(torch.equal(a, b.index) for a, b in zip(first, other.sparsifier.layers, strict=True))
    assert [len(layer.index) for layer in learner.sparsifier.layers] == learner.sparsifier.target
    assert equal(names["resumed"], learner)


def test_what_extending_names_on_the_command_line_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_mine(tmp_path)
    np.save("digits.npy", np.zeros((2, 1, 8, 8), dtype=np.uint8))
    asked = [words for words in commands(ROOT / "docs" / "extending.md") if any("mine" in word for word in words)]
    assert [words[1] for words in asked] == ["run", "predict", "run"]
    with forgotten("mine"):
        for words in asked:
            assert _main(words[1:]) == 0, capsys.readouterr().err
    assert "own" not in capsys.readouterr().err
    for run, named in (("mine", ("method", "sparsifier")), ("all", ("stream", "model", "optimizer", "lr_schedule"))):
        settings = read_toml(tmp_path / "runs" / run / "config.toml")
        assert all(settings[name].startswith("mine:") for name in named)


def test_the_worked_examples_are_under_40_lines():
    examples = [b for b in blocks(ROOT / "docs" / "extending.md", "python") if re.search(r"^class ", b, re.MULTILINE)]
    assert len(examples) == 2
    assert all(len(example.splitlines()) < 40 for example in examples)


def test_coming_from_runs(capsys):
    run("coming-from")
    assert capsys.readouterr().out.count("mean of 5 tasks") == 5


def test_no_page_with_python_is_left_out():
    assert {p for p in NEW if blocks(ROOT / "docs" / f"{p}.md", "python")} == set(RUN)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_parses(page, tmp_path, monkeypatch):
    write_mine(tmp_path)
    monkeypatch.chdir(tmp_path)
    with forgotten("mine"):
        check_commands(page)


def check_commands(page):
    for words in commands(page):
        if words[0] == "sparcl" and len(words) > 1:
            check_sparcl(words[1:])
        elif words[0] == "make":
            assert set(words[1:]) <= KNOWN_TARGETS, words
        elif words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), words


def check_sparcl(words: list[str]) -> None:
    """The subcommand is there, its options are, and a run's settings are allowed ones."""
    group = typer.main.get_command(app)
    command = group.commands[words[0]]
    if len(words) == 1:
        return  # named, not called
    context = command.make_context(words[0], words[1:])
    if words[0] == "run" and context.params["config"] is None and context.params["stream"]:
        fields = Experiment.__dataclass_fields__
        given = {k: v for k, v in context.params.items() if k in fields and v not in (None, ())}
        Experiment.from_dict(given, "options").resolve()


def test_a_wrong_command_is_found():
    with pytest.raises(Exception, match="no-such-option"):
        check_sparcl(["run", "seq-digits", "--no-such-option"])
    with pytest.raises(Exception, match="unknown method"):
        check_sparcl(["run", "seq-digits", "--method", "no-such-method"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_wrap(page):
    rows = prose(page.read_text("utf-8")).splitlines()
    assert [row for row in rows if len(row) > 100 and not row.startswith(("|", "#", "      members:"))] == []


def test_the_site_is_built_without_warnings(tmp_path):
    if find_spec("mkdocs") is None or find_spec("mkdocstrings") is None:
        pytest.skip("no mkdocs: make install installs it")
    asked = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 'id="sparcl.Learner.predict"' in (tmp_path / "reference.html").read_text("utf-8")
