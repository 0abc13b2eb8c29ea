"""The page in a real browser, headless, on a desktop and on a phone: all is drawn, nothing overflows or collides."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from made_runs import make_run, rich_run

from sparcl.report import group, load
from sparcl.report.page import page

NAMES_OF_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(autouse=True)
def chromium(outer_path: None) -> None:
    """These tests need the machine's own PATH, and a browser on it."""
    del outer_path
    if browser() is None:
        pytest.skip("needs Chromium")


def browser() -> str | None:
    return next((found for name in NAMES_OF_CHROMIUM if (found := shutil.which(name))), None)


WIDTHS = {"desktop": 1280, "phone": 375}
SECURITY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')

PROBE = """
<script>
const found = {inner: innerWidth, scroll: 0, beyond: [], collisions: [], empty: [], broken: [], figures: [], dark: ""};
document.querySelectorAll("details").forEach(d => d.open = true);
found.scroll = document.documentElement.scrollWidth;
for (const e of document.body.querySelectorAll("*")) {
  const box = e.getBoundingClientRect();
  if (box.right > innerWidth + 1 || box.left < -1) found.beyond.push(e.tagName + " " + e.textContent.slice(0, 60));
}
for (const svg of document.querySelectorAll("svg.figure")) {
  const outer = svg.getBoundingClientRect();
  if (outer.width < 50 || outer.height < 20) found.empty.push(svg.textContent.slice(0, 60));
  const boxes = [...svg.querySelectorAll("text")].map(t => [t.getBoundingClientRect(), t.textContent]);
  for (let i = 0; i < boxes.length; i++) {
    const [a, name] = boxes[i];
    if (a.right > outer.right + 1 || a.left < outer.left - 1) found.collisions.push(name + " leaves its figure");
    for (let j = 0; j < i; j++) {
      const [b, other] = boxes[j];
      const over = a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 4 && b.top < a.bottom - 4;
      if (over) found.collisions.push(name + " / " + other);
    }
  }
}
document.querySelectorAll("figure").forEach(f => found.figures.push(f.querySelector("figcaption").textContent));
document.querySelectorAll("img").forEach(i => { if (!i.naturalWidth) found.broken.push(i.src.slice(0, 60)); });
found.dark = getComputedStyle(document.body).backgroundColor;
const out = document.createElement("pre"); out.id = "probe"; out.textContent = JSON.stringify(found);
parent.document.body.append(out);
</script>
"""


def looked_at(text: str, folder: Path, width: int, *flags: str) -> dict[str, Any]:
    """What the browser makes of a page; it must not have a complaint about it."""
    assert SECURITY.search(text)
    inside = html.escape(SECURITY.sub("", text).replace("</body>", PROBE + "</body>"))
    frame = f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{inside}"></iframe>'
    file = folder / "probe.html"  # in a frame, for a window is never narrower than 500 pixels
    file.write_text(f'<!doctype html><meta charset="utf-8"><body>{frame}</body>', encoding="utf-8")
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [str(browser()), "--headless", "--no-sandbox", "--disable-gpu", profile, "--window-size=1400,1000"]
    logging = ["--enable-logging=stderr", "--v=0", *flags, "--virtual-time-budget=3000", "--dump-dom", file.as_uri()]
    done = subprocess.run([*command, *logging], capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    told = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert told is not None, "the probe did not run to its end"
    found: dict[str, Any] = json.loads(html.unescape(told[1]))
    return found


def assert_sound(found: dict[str, Any], width: int) -> None:
    assert found["inner"] == width
    assert found["scroll"] <= found["inner"]
    for fault in ("beyond", "collisions", "empty", "broken"):
        assert found[fault] == [], fault


@pytest.mark.parametrize("device", WIDTHS)
def test_a_run_in_full(tmp_path: Path, device: str) -> None:
    rich_run(tmp_path / "run")
    found = looked_at(page(group(load([tmp_path / "run"])[0]), []), tmp_path, WIDTHS[device])
    assert_sound(found, WIDTHS[device])
    expected = ("Class-IL accuracy,", "Class-IL accuracy of each task", "Task-IL accuracy,", "Task-IL accuracy of each")
    expected += ("Training loss", "Confusion", "Density", "Overlap", "Active prunable weights", "Samples of the task")
    assert [next(c for c in found["figures"] if c.startswith(e)) for e in expected] == found["figures"]


@pytest.mark.parametrize("device", WIDTHS)
def test_many_runs_beside_each_other(tmp_path: Path, device: str) -> None:
    for seed in (0, 1):
        for i, method in enumerate(("er", "derpp", "icarl", "fdr", "agem", "ewc", "lwf", "finetune")):
            changed = {"method": method, "seed": seed}
            rich_run(
                tmp_path / f"{method}{seed}", changed, class_il=40.0 + 5 * i + seed, flops__executed=1e12 * (1 + i)
            )
    problems = load([tmp_path / "absent"])[1]
    found = looked_at(page(group(load([tmp_path])[0]), problems), tmp_path, WIDTHS[device])
    assert_sound(found, WIDTHS[device])
    assert sum("against" in caption for caption in found["figures"]) == 4
    assert sum("over tasks" in caption for caption in found["figures"]) == 2


NAMES = [
    "$x^{$",
    "_hidden",
    "<script>alert(1)</script>",
    "W" * 60,
    "界" * 40,
    "</svg></style>",
    "&amp;",
    "",
    "\x00\x1b[31m",
    "a b",
]


@pytest.mark.parametrize("device", WIDTHS)
def test_odd_records_stop_nothing(tmp_path: Path, device: str) -> None:
    odd = {"cpu": "C" * 300, "threads": 1, "device": "$x^{$"}
    rich_run(tmp_path / "names", {"preset": "_" + "long " * 40 + "x" * 200}, names=NAMES, environment=odd)
    huge = {
        f"{section}__{key}": 1e308
        for section, key in (("flops", "executed"), ("seconds", "train"), ("memory", "peak_rss_bytes"))
    }
    for seed in (1, 2):
        rich_run(tmp_path / f"huge{seed}", {"seed": seed}, class_il=1e308, task_il=-1e308, forgetting=1e308, **huge)
    empty = dict.fromkeys(("class_il", "task_il", "forgetting", "accuracy_matrix", "samples", "backend", "per_class"))
    nothing = {"sparsity": {"weights": None}, "flops": dict.fromkeys(("executed", "paper", "dense"))}
    make_run(
        tmp_path / "null", {"seed": 3}, [{"event": "masks", "layers": None}, {"event": "loss"}], **empty, **nothing
    )
    rich_run(tmp_path / "many", {"seed": 4, "stream": "seq-tinyimg"}, tasks=60)
    apart = sorted(p for p in tmp_path.iterdir() if p.is_dir()) if device == "phone" else []
    for path in [None, *apart]:
        records, problems = load([path or tmp_path])
        found = looked_at(page(group(records), problems), tmp_path, WIDTHS[device])
        assert_sound(found, WIDTHS[device])


def test_dark_where_the_reader_wants_dark(tmp_path: Path) -> None:
    rich_run(tmp_path / "run")
    text = page(group(load([tmp_path / "run"])[0]), [])
    light = looked_at(text, tmp_path, 800)["dark"]
    assert light == "rgb(255, 255, 255)"
    assert looked_at(text, tmp_path, 800, "--blink-settings=preferredColorScheme=0")["dark"] == "rgb(21, 23, 26)"
