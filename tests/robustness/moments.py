"""Ended at chosen moments, each of them by every signal: reading, evaluating, saving, moving a mask, writing records.

In the forked process of a run, and nowhere else, a function is replaced by one that sends the signal to its own process
before or after the n-th call. Then: the right exit code and at most one line, nothing lost that was saved, and a resume
to the bits of a run that was never stopped.

    python tests/robustness/moments.py        (part of `make fault`)
"""

from __future__ import annotations

import argparse
import importlib
import io
import itertools
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import killing
import numpy as np
from PIL import Image

from sparcl.checkpoint import Store

READING, TRAINING, ENDING = "reading", "training", "ending"
"""Before there is anything to save; where the step ends and is saved; where all is learned, and the run is finished."""


@dataclass(frozen=True)
class Moment:
    """The n-th call (of those that `where` names) of a function, from its start or its end on.

    Attributes:
        target: `module:name`, or `module:Class.name`.
        phase: what the run is doing, and so what a signal comes to.
        lazy: the images are decoded when they are needed.
        resumed: it is a resume that is ended.
    """

    target: str
    phase: str = TRAINING
    nth: int = 1
    after: bool = False
    where: Callable[..., bool] = lambda *_, **__: True
    lazy: bool = False
    resumed: bool = False

    def arm(self, number: int, mark: Path, out: Path) -> None:
        """From now on this process meets the signal; `mark` then holds what `latest` said."""
        module, _, path = self.target.partition(":")
        holder: Any = importlib.import_module(module)
        *folders, name = path.split(".")
        for part in folders:
            holder = getattr(holder, part)
        real, calls = getattr(holder, name), itertools.count(1)

        def send() -> None:
            latest = out / "checkpoint" / "latest"
            mark.write_text(latest.read_text() if latest.exists() else "")
            os.kill(os.getpid(), number)
            time.sleep(0.01)  # Python looks for signals between two operations

        def call(*arguments: Any, **named: Any) -> Any:
            meant = self.where(*arguments, **named) and next(calls) == self.nth
            if meant and not self.after:
                send()
            result = real(*arguments, **named)
            if meant and self.after:
                send()
            return result

        setattr(holder, name, call)


def of(*names: str) -> Callable[..., bool]:
    """Calls whose first argument is a path of one of these names."""
    return lambda path, *_, **__: path.name in names


def event(name: str) -> Callable[..., bool]:
    return lambda _, happened, *__: bool(happened == name)


def in_training(sparsifier: Any, *_: object) -> bool:
    """Calls of `set_units` once steps are made: not those that make the first mask."""
    return bool(sparsifier.moments.asked > 0)


DISK, STORE, CACHE = "sparcl.checkpoint.disk", "sparcl.checkpoint.store", "sparcl.streams.cache"
RUN_PY, SMALL, SPARSIFIER = "sparcl.run.run", "sparcl.nn.small", "sparcl.sparsity.sparsifier:MaskSparsifier"
IMAGES = "sparcl.streams.lazy_folder:Images"
IS_EVALUATION: Callable[..., bool] = lambda model, *_: not model.training  # noqa: E731

MOMENTS = {
    "an image is decoded": Moment("sparcl.streams.images:_to_rgb", READING, nth=30),
    "the cache is written": Moment("numpy:savez", READING),
    "the cache is written but not in its place": Moment("numpy:savez", READING, after=True),
    "the cache is in its place": Moment(f"{CACHE}:_replace", READING, after=True),
    "the cache is read": Moment("numpy:load", READING, resumed=True),
    "an image is counted": Moment(f"{IMAGES}._decoded", READING, nth=20, lazy=True),
    "the counts are remembered": Moment(f"{CACHE}:_replace", READING, lazy=True),
    "a lazy run is resumed and reads": Moment(f"{IMAGES}._decoded", READING, lazy=True, resumed=True),
    "a checkpoint is read": Moment(f"{STORE}:files.read", READING, resumed=True),
    "a checkpoint is put back": Moment("sparcl.checkpoint.canonical:restore", READING, after=True, resumed=True),
    "events are cut back": Moment(f"{RUN_PY}:EventLog", READING, after=True, resumed=True),
    "the configuration is written": Moment(f"{DISK}:write_file", READING, where=of(".config.toml.tmp"), after=True),
    "the run begins": Moment(f"{RUN_PY}:EventLog.write", READING, where=event("run.begin"), after=True),
    "a lazy batch is decoded": Moment(f"{IMAGES}.read", nth=70, lazy=True),
    "a batch is computed": Moment(f"{SMALL}:ConvNet.forward", nth=25, where=lambda model, *_: model.training),
    "the network is looked through": Moment(f"{SMALL}:ConvNet.forward", READING, where=IS_EVALUATION),
    "the first evaluation": Moment("sparcl.run.signals:StopRequest.__call__", where=event("evaluate.batch")),
    "an evaluation between tasks": Moment(f"{SMALL}:ConvNet.forward", nth=4, where=IS_EVALUATION, after=True),
    "an evaluation is recorded": Moment(f"{RUN_PY}:EventLog.write", where=event("evaluate"), after=True),
    "a mask is moved": Moment(f"{SPARSIFIER}.set_units", where=in_training),
    "a mask was moved": Moment(f"{SPARSIFIER}.set_units", where=in_training, nth=2, after=True),
    "gradients are chosen": Moment("sparcl.sparsity.dgm:DGM.choose", nth=2),
    "samples are removed": Moment("sparcl.sparsity.ddr:DDR.remove", nth=2, after=True),
    "a task begins": Moment("sparcl.sparsity.sparcl:SparCL.begin_task", nth=2, after=True),
    "a task ends": Moment("sparcl.sparsity.sparcl:SparCL.end_task"),
    "events are synced": Moment(f"{RUN_PY}:EventLog.sync", nth=2, after=True),
    "a save begins": Moment(f"{STORE}:files.write", nth=2),
    "tensors are saved": Moment(f"{DISK}:write_file", nth=2, where=of("tensors.safetensors"), after=True),
    "the state is saved": Moment(f"{DISK}:write_file", nth=2, where=of("state.json"), after=True),
    "a manifest is saved": Moment(f"{DISK}:write_file", nth=2, where=of("manifest.json"), after=True),
    "a save is not yet in its place": Moment(f"{STORE}:files.write", nth=3, after=True),
    "a save is in its place, not synced": Moment(f"{DISK}:sync_folder", nth=2, where=of("checkpoint")),
    "a save is synced, not the latest": Moment(f"{DISK}:replace_file", nth=2, where=of("latest")),
    "latest is written, not in its place": Moment(f"{DISK}:write_file", nth=2, where=of(".latest.tmp"), after=True),
    "latest is in its place": Moment(f"{DISK}:replace_file", nth=3, where=of("latest"), after=True),
    "an older checkpoint goes": Moment(f"{DISK}:remove_folder", where=lambda path: path.is_dir(), nth=2),
    "the model is written": Moment(f"{DISK}:write_file", ENDING, where=of(".model.safetensors.tmp"), after=True),
    "README.md is written": Moment(f"{DISK}:write_file", ENDING, where=of(".README.md.tmp")),
    "the end is recorded": Moment(f"{RUN_PY}:EventLog.write", ENDING, where=event("run.end"), after=True),
    "result.json is written": Moment(f"{DISK}:write_file", ENDING, where=of(".result.json.tmp"), after=True),
    "result.json is in its place": Moment(f"{DISK}:replace_file", ENDING, where=of("result.json"), after=True),
    "the page is drawn": Moment("sparcl.run.final:write_report", ENDING),
    "the page is written, not in its place": Moment(
        "os:replace", ENDING, where=lambda path, _: ".sparcl-" in str(path)
    ),
}


def pictures(root: Path, classes: int = 4, train: int = 12, test: int = 3, side: int = 8) -> Path:
    """A folder of small noisy images, four classes in two splits."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for k, i in itertools.product(range(classes), range(count)):
            content = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(content, "PNG")
            file = root / split / f"c{k}" / f"{i:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.getvalue())
    return root


class Moments:
    """A folder of images, and the runs on it that were never stopped, to be compared with."""

    def __init__(self, folder: Path, backend: str) -> None:
        self.folder, self.backend = folder, backend
        self.data = pictures(folder / "data")
        self.whole: dict[bool, dict[str, Any]] = {}
        self.numbers = itertools.count()

    def arguments(self, out: Path, lazy: bool) -> list[str]:
        settings = "--classes-per-task 2 --epochs 6 --batch-size 4 --model convnet --width 4 --threads 1"
        places = ["--data", str(self.data), "--backend", self.backend, "--out", str(out)]
        every = ["--checkpoint-every", "5", "--lazy" if lazy else "--in-memory"]
        return ["run", "folder", *settings.split(), *places, *every]

    def expected(self, lazy: bool) -> dict[str, Any]:
        if lazy not in self.whole:
            out = self.folder / f"whole-{lazy}"
            code, said = self.attempt(out, lazy, self.folder / "cache")
            assert code == 0, said
            moved = sum(e["event"] == "tdm.update" for e in killing.events(out))
            assert moved > 1, "no mask is moved in these runs"
            self.whole[lazy] = killing.lasting(out)
        return self.whole[lazy]

    def attempt(
        self, out: Path, lazy: bool, cache: Path, arm: Callable[[], None] = lambda: None, resume: bool = False
    ) -> tuple[int, str]:
        """Exit code, and what the command said."""
        said = self.folder / f"said-{next(self.numbers)}"

        def prepare() -> None:
            os.environ["SPARCL_CACHE"] = str(cache)
            arm()

        arguments = [*self.arguments(out, lazy), *(["--resume"] if resume else [])]
        code = killing.wait(killing.start(arguments, said, prepare))
        return code, said.read_text()

    def check(self, name: str, number: signal.Signals) -> None:
        """End a run at a moment by a signal, and all that must then hold."""
        moment = MOMENTS[name]
        expected = self.expected(moment.lazy)
        place = self.folder / f"run-{next(self.numbers)}"
        out, cache, mark = place / "out", place / "cache", place / "mark"
        place.mkdir()
        if moment.resumed:
            begun = Moment(f"{DISK}:replace_file", nth=3, where=of("latest"), after=True)
            code, said = self.attempt(out, moment.lazy, cache, lambda: begun.arm(signal.SIGKILL, mark, out))
            assert code == -signal.SIGKILL, said
            mark.unlink()
        code, said = self.attempt(out, moment.lazy, cache, lambda: moment.arm(number, mark, out), moment.resumed)
        assert mark.exists(), f"the moment never came: {code} {said}"
        self._check_end(moment, number, code, said, out, mark.read_text().strip())
        assert number == signal.SIGKILL or not list(place.rglob("*.tmp")), "something half-written stayed"
        code, said = self.attempt(out, moment.lazy, cache, resume=True)
        assert code == 0, said
        found = killing.lasting(out)
        for part, value in expected.items():
            assert found[part] == value, f"{part} differs"
        assert (out / "report.html").exists()
        assert not list(out.rglob("*.tmp")), "something half-written stayed"

    def _check_end(self, moment: Moment, number: int, code: int, said: str, out: Path, saved: str) -> None:
        assert "Traceback" not in said, said
        assert "sparcl: " not in said, said
        told = [line for line in said.splitlines() if "is saved" in line]
        if number == signal.SIGKILL:
            assert (code, told) == (-signal.SIGKILL, []), said
        elif moment.phase == ENDING:
            assert (code, told) == (0, []), said
        else:
            assert code == 128 + number, said
            assert len(told) == (moment.phase == TRAINING), said
        if moment.phase == READING and not moment.resumed and number != signal.SIGKILL:
            assert not out.exists(), "what was begun is left behind"
            return
        loaded = Store(out / "checkpoint").load() if (out / "checkpoint").exists() else None
        assert saved == "" or loaded is not None, f"{saved} was saved and is gone"
        if loaded is not None:
            assert loaded.damaged == ()
            assert not saved or _steps(loaded.name) >= _steps(saved), f"{loaded.name} stands where {saved} was"
            assert not told or loaded.name in told[0], told


def _steps(name: str) -> tuple[int, ...]:
    return tuple(map(int, name.removeprefix("step-").split(".")))


def main(given: Sequence[str] | None = None) -> None:
    """Every moment by every signal on every backend, or some of them."""
    parser = argparse.ArgumentParser(description="End runs at chosen moments; compare with runs never stopped.")
    parser.add_argument("--backend", choices=killing.backends(), nargs="*", default=killing.backends())
    parser.add_argument("--signal", choices=[n.name for n in killing.ENDS], nargs="*")
    parser.add_argument("--moment", choices=list(MOMENTS), nargs="*", default=list(MOMENTS))
    arguments = parser.parse_args(given)
    killing.prepare()
    numbers = [signal.Signals[name] for name in arguments.signal or [n.name for n in killing.ENDS]]
    for backend in arguments.backend:
        with tempfile.TemporaryDirectory() as folder:
            moments = Moments(Path(folder), backend)
            for name, number in itertools.product(arguments.moment, numbers):
                try:
                    moments.check(name, number)
                except AssertionError as error:
                    raise AssertionError(f"{backend}, {name}, {number.name}: {error}") from None
        names = ", ".join(number.name for number in numbers)
        print(f"{backend}: ended at {len(arguments.moment)} moments, each by {names}: all resumed to the same bits")


if __name__ == "__main__":
    main()
