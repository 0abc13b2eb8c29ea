"""What a finished run leaves for use: its README, run as it stands, gives the accuracy that result.json reports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sparcl import streams
from sparcl.main import _main

QUICK = ["--epochs", "2", "--width", "8", "--limit-per-class", "60", "--threads", "1", "--backend", "reference"]

JUDGE = """
stream = __import__("sparcl").streams.load("seq-digits", limit_per_class=60)
own = {}
for t, task in enumerate(stream):
    pixels = task.test.inputs
    CODE
    k = torch.tensor(known["tasks"][t])
    own[t] = [
        float((logits.argmax(1) == task.test.labels).float().mean() * 100),
        float((k[logits[:, k].argmax(1)] == task.test.labels).float().mean() * 100),
    ]
print(json.dumps([sum(v[i] for v in own.values()) / len(own) for i in (0, 1)]))
"""


@pytest.mark.parametrize(
    ("method", "sparsifier"), [("icarl", "dense"), ("packnet", "dense"), ("lps", "dense"), ("er", "sparcl")]
)
def test_the_readme_run_as_it_stands_gives_the_reported_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, sparsifier: str
) -> None:
    out = tmp_path / "run"
    command = ["run", "seq-digits", "--method", method, "--sparsifier", sparsifier, *QUICK, "--out", str(out)]
    assert _main(command) == 0
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    needs = None if method == "er" else {"file": "answers.safetensors", "what": result["model"]["needs"]["what"]}
    assert result["model"] == {"file": "model.safetensors", "answers_alone": method == "er", "needs": needs}
    assert (out / "answers.safetensors").exists() == (method != "er")
    text = (out / "README.md").read_text(encoding="utf-8")
    assert ("The weights alone do not give the measured answers" in text) == (method != "er")

    code = text.split("```python\n")[1].split("```")[0].splitlines()
    at = next(i for i, line in enumerate(code) if line.startswith("x = "))
    inside = "\n    ".join(line.replace("task=0", "task=t") for line in code[at:])
    program = "\n".join(code[:at]) + JUDGE.replace("CODE", inside)
    done = subprocess.run([sys.executable, "-c", program], cwd=out, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    class_il, task_il = json.loads(done.stdout)
    assert task_il == pytest.approx(result["task_il"], abs=0.01)
    if result["class_il"] is not None:
        assert class_il == pytest.approx(result["class_il"], abs=0.01)

    held = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (command,) = re.findall(r"`sparcl (export[^`]*)`", text.replace("\n", " "))
    monkeypatch.chdir(out)
    assert _main([*command.split(), *(["--task", "1"] if result["class_il"] is None else [])]) == 0
    assert all(path.read_bytes() == content for path, content in held.items()), "nothing of the run is lost"


def test_result_names_the_data_its_classes_and_their_normalisation(tmp_path: Path) -> None:
    command = ["run", "seq-digits", *QUICK, "--class-order-seed", "3", "--out"]
    assert _main([*command, str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    stream = streams.load("seq-digits", class_order_seed=3, limit_per_class=60)
    assert result["data"] == {
        "fingerprint": stream.fingerprint,
        "input_shape": [1, 8, 8],
        "input_dtype": "uint8",
        "mean": [0.0],
        "std": [1.0],
        "augment": [],
        "class_names": list(stream.class_names),
        "tasks": [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]],
    }
    assert result["data"]["class_names"] != sorted(result["data"]["class_names"])
    assert load_file(tmp_path / "run" / "model.safetensors")
