"""`sparcl run`: an experiment from its settings to its records."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sparcl import named
from sparcl.checkpoint import Checkpointer, Interval, Loaded, Store, checks
from sparcl.cost.clock import Clock
from sparcl.cost.flops import Ledger, left_out
from sparcl.cost.memory import memory, peak_rss_bytes
from sparcl.errors import ConfigError, SparclError, Stopped
from sparcl.methods.buffer import parse_bytes
from sparcl.run import build, effect, final, fit, pretrained, trackers
from sparcl.run.console import deserted
from sparcl.run.damage import check_mendable, damage
from sparcl.run.evaluate import AccuracyMatrix
from sparcl.run.experiment import Experiment
from sparcl.run.leftover import nothing_left_behind
from sparcl.run.lock import locked
from sparcl.run.measured import backend_used, environment, model_sha256, sparsity
from sparcl.run.observers import LossCurve, MaskTrace, SampleTrace
from sparcl.run.progress import Measuring, Progress, summary
from sparcl.run.record import EventLog, RunDirectory, as_json, write_atomically
from sparcl.run.resume import (
    as_fitted,
    changes,
    check_data,
    check_labels,
    check_same,
    computed_with,
    difference,
    extent,
    load,
    resumed,
    run_part,
    settings,
)
from sparcl.run.signals import StopRequest
from sparcl.run.toml import read_toml
from sparcl.run.trackers import Trackers
from sparcl.streams.registry import STREAMS
from sparcl.streams.task import Stream


def execute(
    experiment: Experiment,
    out: Path | None,
    *,
    resume: bool,
    checkpoint_every: str | None,
    console: Console,
    track: Sequence[str] = (),
    named: Collection[str] = (),
) -> dict[str, Any]:
    """Run an experiment and return its result.json; the trackers `track` are told of its metrics.

    Where it has a `max_memory`, what is not `named` of its settings may give way to it, see `run/fit.py`.

    Raises:
        SparclError: anything the user can mend; no new run directory is left behind unless it holds a checkpoint.
        Stopped: a signal came; a checkpoint holds everything up to the last step.
    """
    experiment = pretrained.recorded(experiment.resolve())
    every = Interval.parse(checkpoint_every)
    build.check(experiment)
    trackers.check(track)
    directory = RunDirectory(out or Path("runs") / experiment.name)
    directory.check_free()
    if directory.finished and resume:
        ran = Experiment.from_dict(read_toml(directory.config), str(directory.config)).resolve()
        experiment = as_fitted(experiment, settings(ran), named)
        check_same(experiment, settings(ran), str(directory.config))
        if (damaged := damage(directory)) is None:
            return _finished(directory, ran, console, track)
        check_mendable(directory, damaged)
        console.print(f"{damaged}: it is written again from the checkpoint", highlight=False, soft_wrap=True)
    begun = resume and directory.used
    if not begun:
        effect.check(experiment)
    with (
        locked(directory.path) as made,
        nothing_left_behind(directory, made),
        StopRequest(lambda: deserted(console)) as stop,
    ):
        if directory.used and not resume:
            raise ConfigError(_taken(directory, experiment, named))
        loaded = load(directory.checkpoints) if resume else None
        part = None if loaded is None else run_part(loaded)
        if part is not None:
            experiment = resumed(as_fitted(experiment, part["experiment"], named), part)
        if experiment.threads is not None:
            torch.set_num_threads(experiment.threads)
        stream = build.stream(experiment, _reading(console, stop))
        stop.check()
        if not begun:
            effect.check_stream(experiment, stream)
        if part is not None:
            check_data(stream, part)
        elif experiment.max_memory is not None and not experiment.fitted:
            told = partial(console.print, highlight=False, soft_wrap=True)
            experiment = fit.for_run(experiment, stream, named, told)
        run = Run(experiment, stream, directory, console, every, stop, track)
        if loaded is not None:
            run.restore(loaded)
        elif resume:
            console.print(f"no checkpoint in {directory.path}: starting from the beginning", highlight=False)
        return run.execute(resume)


def _taken(directory: RunDirectory, experiment: Experiment, named: Collection[str]) -> str:
    """Why a new run cannot have a directory: what is there."""
    try:
        there = Experiment.from_dict(read_toml(directory.config), str(directory.config)).resolve()
    except SparclError:  # another's, or stopped before its settings were written
        return f"run directory {directory.path} is in use: add --resume to go on, or choose another --out"
    if (told := difference(there, experiment, named)) is not None:
        return f"run directory {directory.path} holds a run with {told}; choose another --out"
    state = "finished" if directory.finished else "begun before"
    return f"run directory {directory.path} holds this run, {state}: add --resume, or choose another --out"


def _finished(directory: RunDirectory, ran: Experiment, console: Console, track: Sequence[str]) -> dict[str, Any]:
    """The result of a run that is finished and whole; what was not drawn or told of it yet is."""
    if told := trackers.tell_again(track, directory.path, settings(ran)):
        console.print(f"{directory.path} is finished; {', '.join(told)} told of it", highlight=False)
    else:
        console.print(f"{directory.path} is finished; nothing to do", highlight=False)
    if not os.path.lexists(directory.page):  # it was killed before that was drawn
        final.write_page(directory, console)
    return directory.read_result()


class Run:
    """One run: the Learner, and those who look on."""

    def __init__(
        self,
        experiment: Experiment,
        stream: Stream,
        directory: RunDirectory,
        console: Console,
        every: Interval,
        stop: StopRequest,
        track: Sequence[str] = (),
    ) -> None:
        self.track = track
        self.experiment, self.stream, self.directory, self.console = experiment, stream, directory, console
        self.learner = build.learner(experiment, stream, [Measuring(console)])
        lazy = stream.lazy if not named.is_own(experiment.stream) and STREAMS[experiment.stream].resizes else None
        self.experiment = dataclasses.replace(experiment, layer_choice=self.learner.layer_choice, lazy=lazy)
        self.training_stream = stream.merged() if self.learner.method.learns_all_at_once else stream
        front = None if self.learner.latents is None else self.learner.latents.front
        self.ledger = Ledger(self.learner.rest, self.learner.sparsifier.layers, stream.input_shape, front)
        if unseen := left_out(self.learner.model):
            told = f"FLOPs count convolutions and linear layers; left out: {', '.join(unseen[:5])}"
            console.print(told + ("" if len(unseen) <= 5 else f" and {len(unseen) - 5} more"), highlight=False)
        self.clock = Clock()
        self.matrix = AccuracyMatrix(len(stream), answers_unseen=self.learner.method.answers_unseen)
        self.progress = Progress(console, [len(t.train) for t in self.training_stream.tasks], self.learner)
        self.stop, self.store = stop, Store(directory.checkpoints)
        self.losses = LossCurve(self._note)
        self.masks = MaskTrace(self.learner, self._note)
        self.checkpointer = Checkpointer(every, self._checkpoint)
        self.loaded: Loaded | None = None
        self.peak_rss_bytes = 0

    def restore(self, loaded: Loaded) -> None:
        """Go on from a checkpoint, to the same bits.

        Raises:
            CheckpointError: it does not fit this run.
        """
        for line in loaded.damaged:
            self.console.print(f"{line}; using {loaded.name}", highlight=False, soft_wrap=True)
        self.loaded, self.store = loaded, Store(self.directory.checkpoints, loaded.name)
        part = run_part(loaded)
        if changed := changes(part["computed_with"]):
            self.console.print(
                f"{changed}: the last bits may differ from the run's so far", highlight=False, soft_wrap=True
            )
        self.learner.restore({name: value for name, value in loaded.state.items() if name != "run"})
        check_labels(self.learner, self.stream)
        with checks.refusing("what the run has counted"):
            self.ledger.load_state_dict(part["ledger"])
            self.clock.load_state_dict(part["clock"])
            self.matrix.load_state_dict(part["matrix"])
            self.losses.load_state_dict(part["losses"])
            self.masks.load_state_dict(part["masks"])
            self.peak_rss_bytes = checks.integer(part["peak_rss_bytes"], "peak RSS")
        position = self.learner.position
        inside = 0.0 if position is None else self.learner.budget.spent(position)
        self.progress.resume_at(self.learner.learned + inside)

    def execute(self, resume: bool = False) -> dict[str, Any]:
        """Learn every task, evaluating on all of them after each, and write the records."""
        write_atomically(self.directory.config, self.experiment.to_toml())
        self.log = self._open_log(resume)
        samples = SampleTrace(self.learner, self.stream.class_names, self.directory.samples)
        self.learner.observers += [self.clock, self.ledger, self.progress, self.log]
        self.learner.observers += [self.losses, self.masks, samples, self.stop, self.checkpointer]
        try:
            with self.progress:
                self._learn()
            result = self.result()
            final.save(self.directory, self.learner, self.stream, self.experiment)
            self._record_pace()
            self.log.write("run.end", {"class_il": result["class_il"], "task_il": result["task_il"]})
        except Stopped as stopped:
            stopped.saved = self._checkpoint().name
            self.console.print(f"stopped; {stopped.saved} is saved: go on with --resume", highlight=False)
            raise
        finally:
            self.log.close()
        write_atomically(self.directory.result, as_json(result))
        self.console.print(summary(result, self.experiment.scenario))
        if (told := fit.over(result["memory"])) is not None:
            self.console.print(told, highlight=False, soft_wrap=True)
        final.write_page(self.directory, self.console)
        self.console.print(f"records in {self.directory.path}", highlight=False)
        return result

    def _note(self, event: str, figures: dict[str, Any]) -> None:
        self.log.write(event, figures)

    def _open_log(self, resume: bool) -> EventLog:
        if self.loaded is None:
            log = EventLog(self.directory.events)
        else:
            part = run_part(self.loaded)
            log = EventLog(self.directory.events, extent(part), self.clock.seconds()["total"])
            log.position = dict(part["position"])
        if log.changed:
            self.console.print(
                f"{log.path.name} is not what {self.loaded.name if self.loaded else 'the run'} knew of it: it was"
                " shortened or edited, and its records up to there are not the run's own",
                highlight=False,
                soft_wrap=True,
            )
        if resume:
            damaged = [] if self.loaded is None else list(self.loaded.damaged)
            figures = {"step": self.learner.steps, "damaged": damaged, "computed_with": computed_with()}
            log.write("run.resume", {**figures, "events_changed": log.changed})
        log.follower = self._trackers(log.kept)
        if self.loaded is None:
            log.write("run.begin", {"tasks": len(self.training_stream), "scenario": self.experiment.scenario})
        return log

    def _trackers(self, kept: bytes) -> Trackers | None:
        """Those who are told of the metrics; none in most runs."""
        return Trackers(self.track, self.directory.path, settings(self.experiment), kept) if self.track else None

    def _learn(self) -> None:
        """All tasks that are left, each with its evaluation, and a checkpoint at the end."""
        self.stop.training = True
        if not self.stream.tested:
            self.console.print("there are no test samples: accuracy is not measured", highlight=False)
        elif not self.matrix.has_baseline:
            self.matrix.set_baseline(self.learner.evaluate(self.stream.tasks))
        if self.stream.tested and len(self.matrix) < self.learner.learned:  # stopped before or in this evaluation
            self._evaluate(self.log)
        for task in self.training_stream.tasks[self.learner.learned :]:
            self.learner.learn(task)
            if self.stream.tested:
                self._evaluate(self.log)
            else:
                self._tell_learned()
            if self.checkpointer.due():
                self.checkpointer.now()
        self._checkpoint()

    def _checkpoint(self) -> Path:
        """Write everything that is needed to go on from here; it is no time of training."""
        with self.clock.paused():
            self.directory.check_ours()
            return self.store.save(self.learner.steps, {**self.learner.checkpoint_state(), "run": self._counted()})

    def _counted(self) -> dict[str, Any]:
        """What the run, beside the Learner, needs to go on from here."""
        events = self.log.sync()
        return {
            "experiment": settings(self.experiment),
            "fingerprint": self.stream.fingerprint,
            "ledger": self.ledger.state_dict(),
            "clock": self.clock.state_dict(),
            "matrix": self.matrix.state_dict(),
            "events": events.size,
            "events_sha256": events.sha256,
            "position": dict(self.log.position),
            "losses": self.losses.state_dict(),
            "masks": self.masks.state_dict(),
            "peak_rss_bytes": max(self.peak_rss_bytes, peak_rss_bytes() or 0),
            "computed_with": computed_with(),
        }

    def _evaluate(self, log: EventLog) -> None:
        accuracy = self.learner.evaluate(self.stream.tasks)
        self.matrix.add(accuracy)
        seen = self.learner.learned if len(self.training_stream) > 1 else len(self.stream)
        so_far = dataclasses.replace(
            accuracy,
            class_il=None if accuracy.class_il is None else accuracy.class_il[:seen],
            task_il=None if accuracy.task_il is None else accuracy.task_il[:seen],
        )
        assert self.experiment.scenario is not None
        told = self.progress.accuracy = so_far.told(self.experiment.scenario)
        log.write("evaluate", {"class_il": accuracy.class_il, "task_il": accuracy.task_il, "seen": seen})
        self._tell_learned(f": {told}")

    def _tell_learned(self, accuracy: str = "") -> None:
        told = f"task {self.learner.learned}/{len(self.training_stream)} learned{accuracy}"
        self.console.print(told, highlight=False)

    def _record_pace(self) -> None:
        """What a budget of seconds came to goes into config.toml, so that it runs again to the same bits."""
        if self.learner.pace:
            self.experiment = dataclasses.replace(self.experiment, pace=tuple(map(tuple, self.learner.pace)))
            write_atomically(self.directory.config, self.experiment.to_toml())

    def result(self) -> dict[str, Any]:
        """The contents of result.json (docs/records.md)."""
        learner, metrics = self.learner, self.matrix.metrics()
        held = memory(learner.model, learner.optimizer, learner.sparsifier.layers, learner.method.buffer)
        most = self.experiment.max_memory
        held["budget_bytes"] = None if most is None else parse_bytes(most, "max memory")
        with learner.averaged():  # of the weights that answer, as they are saved
            digest = model_sha256(learner.model)
        return {
            "benchmark": self.experiment.stream,
            "method": self.experiment.method,
            "sparsifier": self.experiment.sparsifier,
            "backend": backend_used(learner),
            "seed": self.experiment.seed,
            "data": final.data(self.stream),
            "model": final.model(learner.method),
            "model_sha256": digest,
            **metrics,
            "accuracy_matrix": self.matrix.rows(),
            "per_class": self.matrix.per_class(self.stream.class_names),
            "sparsity": sparsity(learner),
            "samples": {"seen": self.ledger.samples_seen, "removed": self.ledger.samples_removed},
            "flops": {**self.ledger.totals(), "phases": dict(self.ledger.phases)},
            "seconds": self.clock.seconds(),
            "memory": {**held, "peak_rss_bytes": max(self.peak_rss_bytes, held["peak_rss_bytes"] or 0) or None},
            "environment": environment(learner.device),
        }


def _reading(console: Console, stop: StopRequest) -> Any:
    """A progress callback for the first decoding of the data; also a place where a run may stop."""
    shown = [0.0]

    def show(done: int, total: int) -> None:
        stop.check()
        share = done / total if total else 1.0
        if share - shown[0] >= 0.25 or (done == total and shown[0]):
            shown[0] = share
            console.print(f"reading data: {share:.0%}", highlight=False)  # of files, or of an archive's bytes

    return show
