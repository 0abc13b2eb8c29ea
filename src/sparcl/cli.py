"""The command line: `sparcl run`, `sparcl info`, ..."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import sparcl
from sparcl import outputs
from sparcl.errors import ConfigError, unknown
from sparcl.report import neutral
from sparcl.run.console import CommandConsole
from sparcl.run.manual import Commands
from sparcl.run.values import class_names, named_numbers, sizes

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"sparcl {sparcl.__version__}")
        raise typer.Exit


@app.callback()
def commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="which one this is")
    ] = False,
) -> None:
    """Continual learning whose sparsity is real: sparse weights, gradients and data, in seconds and bytes."""


@app.command()
def run(
    stream: Annotated[str | None, typer.Argument(help="what arrives: seq-digits, seq-cifar10, folder, ...")] = None,
    method: Annotated[str | None, typer.Option(help="how it is learned: derpp (default), er, finetune, ...")] = None,
    sparsifier: Annotated[str | None, typer.Option(help="what is computed: sparcl (default), dense, ...")] = None,
    sparsity: Annotated[float | None, typer.Option(help="share of prunable weights that is zero; default 0.90")] = None,
    pattern: Annotated[str | None, typer.Option(help="unstructured (default) or block")] = None,
    block_size: Annotated[int | None, typer.Option(help="output channels that share positions; default 4")] = None,
    distribution: Annotated[str | None, typer.Option(help="sparsity over the layers: uniform (default) or erk")] = None,
    prunable: Annotated[list[str] | None, typer.Option(help="names of prunable layers (shell patterns)")] = None,
    first_mask: Annotated[
        str | None, typer.Option(help="random (default) or magnitude (default with --init): the largest weights")
    ] = None,
    gradient_sparsity: Annotated[float | None, typer.Option(help="DGM: share of active weights not updated")] = None,
    sample_removal: Annotated[float | None, typer.Option(help="DDR: share of a task's samples removed")] = None,
    ddr_score: Annotated[str | None, typer.Option(help="misclassified (default) or forgetting")] = None,
    importance: Annotated[str | None, typer.Option(help="TDM ranks by cwi (default), magnitude; none: no TDM")] = None,
    ranking: Annotated[str | None, typer.Option(help="by gradients of step (default) or fresh batches")] = None,
    buffer_size: Annotated[int | None, typer.Option(help="samples kept for rehearsal; default 200")] = None,
    buffer_bytes: Annotated[str | None, typer.Option(help="bytes kept, e.g. 2MB, in place of a size")] = None,
    buffer_policy: Annotated[str | None, typer.Option(help="reservoir (default) or balanced over classes")] = None,
    buffer_storage: Annotated[str | None, typer.Option(help="raw (default), float16 or jpeg")] = None,
    single_head: Annotated[bool | None, typer.Option(help="mask other tasks' logits in the training loss")] = None,
    sparsifier_option: Annotated[
        list[str] | None, typer.Option(help="of a sparsifier of your own: NAME=NUMBER")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="a named setting of the method, e.g. sparcl-script")] = None,
    option: Annotated[list[str] | None, typer.Option(help="the method's own: NAME=NUMBER, e.g. alpha=0.2")] = None,
    epochs: Annotated[int | None, typer.Option(help="passes over each task; default: published")] = None,
    steps: Annotated[int | None, typer.Option(help="steps a task, in place of epochs")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="of training a task, in place of epochs")] = None,
    batch_size: Annotated[int | None, typer.Option(help="samples a step; default 32")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="pass so few at a time: less memory")] = None,
    drop_last: Annotated[
        bool | None,
        typer.Option("--drop-last/--keep-last", help="an epoch's last partial batch; default: as its source"),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="learning rate; default: published")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="default: published (0 for most)")] = None,
    lr_schedule: Annotated[
        str | None, typer.Option(help="over each task: constant (default), cosine or step(0.5,0.75,by=0.1)")
    ] = None,
    warmup: Annotated[float | None, typer.Option(help="share of each task in which the rate rises; default 0")] = None,
    clip_grad_norm: Annotated[float | None, typer.Option(help="what the gradients' norm is scaled down to")] = None,
    average: Annotated[float | None, typer.Option(help="mean over this share of a task answers")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd (default), adam, adamw, or your own")] = None,
    momentum: Annotated[float | None, typer.Option(help="of optimizer sgd; default 0")] = None,
    optimizer_option: Annotated[list[str] | None, typer.Option(help="NAME=NUMBER, e.g. beta2=0.99")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="resnet18, convnet, mlp, or your own as package.module:name; default: the stream's"),
    ] = None,
    width: Annotated[int | None, typer.Option(help="channels of the model's first layer; resnet18: 64")] = None,
    activations: Annotated[str | None, typer.Option(help="kept as float32 (default) or bfloat16")] = None,
    init: Annotated[str | None, typer.Option(help="safetensors file with the weights to start from")] = None,
    freeze: Annotated[str | None, typer.Option(help="parts that do not learn, e.g. stem,layer1")] = None,
    latents: Annotated[str | None, typer.Option(help="keep what a frozen front answers: float16, int8, ...")] = None,
    scenario: Annotated[
        str | None, typer.Option(help="told first, with its forgetting: class-il (default) or task-il")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="auto (default), native or reference")] = None,
    device: Annotated[str | None, typer.Option(help="auto (default), cpu or cuda")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: PyTorch's")] = None,
    max_memory: Annotated[str | None, typer.Option(help="of the process, e.g. 400MB; picks what fits")] = None,
    seed: Annotated[int | None, typer.Option(help="of every random draw; default 0")] = None,
    data: Annotated[str | None, typer.Option(help="folder or archive with the stream's data")] = None,
    limit_per_class: Annotated[int | None, typer.Option(help="use only so many images a class")] = None,
    limit_test_per_class: Annotated[int | None, typer.Option(help="test on only so many images a class")] = None,
    classes_per_task: Annotated[
        Any, typer.Option(parser=sizes, metavar="N|N,N,...", help="one for all or one for each; default: published")
    ] = None,
    class_order_seed: Annotated[int | None, typer.Option(help="shuffle the classes over the tasks")] = None,
    class_order: Annotated[
        Any, typer.Option(parser=class_names, metavar="NAME,NAME,...", help="all classes in the order they come")
    ] = None,
    resize: Annotated[int | None, typer.Option(help="folder: side to resize images to")] = None,
    augment: Annotated[
        list[str] | None, typer.Option(help="none, crop, flip, crop+flip, or your own; default: the stream's")
    ] = None,
    lazy: Annotated[
        bool | None, typer.Option("--lazy/--in-memory", help="folder: decode when needed; default: if it does not fit")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="run directory; default runs/<name>")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the run directory's checkpoint")] = False,
    checkpoint_every: Annotated[
        str | None, typer.Option(help="steps or seconds between checkpoints: 500 or 60s (default)")
    ] = None,
    track: Annotated[list[str] | None, typer.Option(help="tell csv, tensorboard or wandb of the metrics")] = None,
    config: Annotated[Path | None, typer.Option(help="a TOML file with these settings; options override it")] = None,
) -> None:
    """Train on a stream of tasks, one after another, and leave a run directory with the result.

    Stream, method, sparsifier, model, optimizer and augmentation may be your own: package.module:name.
    """
    from sparcl.run.experiment import Experiment
    from sparcl.run.overriding import overridden
    from sparcl.run.run import execute
    from sparcl.run.toml import read_toml

    given: dict[str, Any] = {k: v for k, v in locals().items() if k in {f.name for f in dataclasses.fields(Experiment)}}
    given = {k: v for k, v in given.items() if v is not None}
    values = read_toml(config) if config is not None else {}
    for of, pairs in (("method", option), ("sparsifier", sparsifier_option), ("optimizer", optimizer_option)):
        if pairs:
            asked = named_numbers(pairs, "option" if of == "method" else f"{of}-option")
            values = {**values, f"{of}_options": {**values.get(f"{of}_options", {}), **asked}}
    values = overridden(values, given)
    experiment = Experiment.from_dict(values, str(config) if config else "options")
    how: dict[str, Any] = {
        "resume": resume,
        "checkpoint_every": checkpoint_every,
        "track": track or (),
        "named": set(values),
    }
    execute(experiment, out, console=_console(), **how)


@app.command()
def watch(run: Annotated[Path, typer.Argument(help="a run directory, while another process works on it")]) -> None:
    """Follow a run: task, epoch, loss and accuracy as they come; ends when the run ends."""
    from sparcl.run.watch import watch

    watch(run, _console())


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="a finished run's directory, or a device's file")],
    files: Annotated[list[Path], typer.Argument(help="images, or .npy arrays of samples")],
    format: Annotated[str, typer.Option(help="table, csv or json")] = "table",
    task: Annotated[int | None, typer.Option(help="ask among this task's classes only, from 1")] = None,
    top: Annotated[int, typer.Option(help="so many of the most probable classes")] = 1,
) -> None:
    """What a run answers to files: class names and probabilities."""
    from sparcl.run.predict import execute

    execute(run, files, format, task, top, _console(), lambda told: print(neutral.line(told), file=sys.stderr))


@app.command()
def export(
    run: Annotated[
        Path, typer.Argument(help="a finished run's directory, a device's file, or for device a TOML file of settings")
    ],
    out: Annotated[Path, typer.Option(help="file to write")],
    format: Annotated[
        str, typer.Option(help="torch (safetensors and the code that loads it), onnx, or device (for sparcl-device)")
    ] = "torch",
    task: Annotated[int | None, typer.Option(help="this task's classes only, from 1")] = None,
) -> None:
    """Write a run's network for use without sparcl: raw samples in, logits out.

    `device` is one file that sparcl-device goes on learning from; of a TOML file (as of `run --config`): a fresh model.
    """
    from sparcl.run.export import execute

    _tell_written(execute(run, format, out, task))


@app.command()
def pack(
    stream: Annotated[str, typer.Argument(help="seq-digits, seq-cifar10, folder, ...")],
    out: Annotated[Path, typer.Option(help="file to write")],
    task: Annotated[int | None, typer.Option(help="only this task, from 1; default: all")] = None,
    split: Annotated[str, typer.Option(help="train or test")] = "train",
    data: Annotated[str | None, typer.Option(help="folder or archive with the stream's data")] = None,
    classes_per_task: Annotated[
        Any, typer.Option(parser=sizes, metavar="N|N,N,...", help="as of the run; default: published")
    ] = None,
    class_order_seed: Annotated[int | None, typer.Option(help="as of the run")] = None,
    class_order: Annotated[Any, typer.Option(parser=class_names, metavar="NAME,NAME,...", help="as of the run")] = None,
    resize: Annotated[int | None, typer.Option(help="folder: side to resize images to")] = None,
) -> None:
    """Write samples as one file for sparcl-device."""
    from sparcl.run.export_device import pack_stream

    order = {"classes_per_task": classes_per_task, "class_order_seed": class_order_seed, "class_order": class_order}
    count = pack_stream(stream, out, task=task, split=split, data=data, resize=resize, **order)
    _tell_written([out], f" ({count} samples)")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="run directories, or folders that hold some; or files of devices")],
    format: Annotated[str, typer.Option(help="table, markdown, csv or html")] = "table",
    out: Annotated[Path | None, typer.Option(help="file to write; default: standard output")] = None,
) -> None:
    """Compare finished runs: mean ± standard deviation over seeds, beside what was published.

    Of files that come from devices: what is in each.
    """
    from sparcl.report import write

    files = [place for place in runs if os.path.isfile(place)]  # which raises nothing, whatever the name
    if not files:
        write(runs, format, out)
        if out is not None:
            _tell_written([out])
        return
    from sparcl.report.write import write_text
    from sparcl.run import device_file

    if len(files) < len(runs):
        raise ConfigError(f"{files[0]} is a file, the rest are runs: report one or the other")
    if out is not None:
        outputs.check(out, *files)
    text = device_file.report(files, format)
    if out is None:
        print(text, end="")
    else:
        write_text(out, text)
        _tell_written([out])


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="a TOML file with the tables base, grid and runs")],
    jobs: Annotated[
        int | None, typer.Option(help="runs side by side; default: 1, on a cluster as many as it gives")
    ] = None,
    launcher: Annotated[str, typer.Option(help="local or slurm")] = "local",
    partition: Annotated[str | None, typer.Option(help="slurm: where to queue")] = None,
    time: Annotated[
        str | None, typer.Option(help="slurm: of a job, until it queues again; minutes or H:MM:SS, default 60")
    ] = None,
    memory: Annotated[str | None, typer.Option(help="slurm: of a job, e.g. 4G")] = None,
    data: Annotated[str | None, typer.Option(help="folder or archive with the streams' data")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the run directories; default runs/<file's name>")] = None,
) -> None:
    """Run a grid of experiments, each in its own process; finished runs are skipped, interrupted ones resumed."""
    from sparcl.report import write
    from sparcl.run import launch
    from sparcl.run import sweep as sweeps

    cells = sweeps.read(file, data)
    out = out or Path("runs") / file.stem
    if launcher not in launch.LAUNCHERS:
        raise ConfigError(unknown("launcher", launcher, launch.LAUNCHERS))
    if launcher == "local" and (partition, time, memory) != (None, None, None):
        raise ConfigError("partition, time and memory go with --launcher slurm")
    if launcher == "local":
        where: launch.Launcher = launch.Local(1 if jobs is None else jobs)
    else:
        limit = launch.minutes("60" if time is None else time)
        where = launch.Cluster(
            out / sweeps.WORK / "slurm", at_once=jobs, partition=partition, minutes=limit, memory=memory
        )
    failed = sweeps.execute(cells, out, where, _console())
    if len(failed) < len(cells):
        write([out / cell.name for cell in cells])
    if failed:
        raise ConfigError(f"{len(failed)} of {len(cells)} runs failed, listed above; the same command tries them again")


@app.command()
def info(
    flops: Annotated[
        bool, typer.Option("--flops", help="forecast the published CIFAR-10 protocol's FLOPs, without training")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="the same for programs")] = False,
) -> None:
    """What is installed, what can be named, what is missing here; --flops: what the published protocol costs."""
    from sparcl.cost.protocol import published_rows, table
    from sparcl.run.info import about, as_text

    console = _console()
    if flops and json_:
        raise ConfigError("--flops has no --json; leave one of them out")
    if flops:
        console.print(table(published_rows()))
    elif json_:
        print(json.dumps(about(), indent=2))
    else:
        console.out(as_text(about(), console.width if console.is_terminal else None), end="", highlight=False)


@app.command()
def bench(
    model: Annotated[str | None, typer.Option(help="resnet18 (default), convnet or mlp")] = None,
    width: Annotated[int | None, typer.Option(help="channels of the model's first layer; resnet18: 64")] = None,
    batch_size: Annotated[int, typer.Option(help="samples a step")] = 32,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: PyTorch's")] = None,
    sparsity: Annotated[list[float] | None, typer.Option(help="default: 0.75, 0.90 and 0.95")] = None,
    pattern: Annotated[list[str] | None, typer.Option(help="unstructured or block; default: both")] = None,
    block_size: Annotated[int, typer.Option(help="output channels that share positions")] = 4,
    activations: Annotated[str | None, typer.Option(help="of native steps: float32 (default) or bfloat16")] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="time torch.compile as well (slow to start)")] = False,
    job: Annotated[bool, typer.Option("--job", help="how many steps of a whole job fit into --seconds a task")] = False,
    seconds: Annotated[float | None, typer.Option(help="with --job: of training a task; default 60")] = None,
    stream: Annotated[str | None, typer.Option(help="with --job: whose shape; default seq-cifar10")] = None,
    samples: Annotated[int | None, typer.Option(help="with --job: images a task; default: the stream's")] = None,
    method: Annotated[str | None, typer.Option(help="with --job: default derpp")] = None,
    sparsifier: Annotated[list[str] | None, typer.Option(help="with --job: default sparcl")] = None,
    buffer_size: Annotated[int | None, typer.Option(help="with --job: default 200")] = None,
    device: Annotated[str | None, typer.Option(help="with --job: auto (default), cpu or cuda")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="write the rows to this file")] = None,
) -> None:
    """What will I gain on this device? A dense PyTorch training step against a native one, in time and memory.

    The JSON file holds a list of rows: sparsity, pattern, dense_ms, dense_variant, native_ms, speedup, theoretical_gain
    (multiply-adds of the dense step over those of the sparse one), peak_dense_bytes, peak_native_bytes, activations,
    isa, threads, batch, width, model. With --job: method, sparsifier, sparsity, pattern, activations, step_ms,
    update_ms (what a mask update takes more), choice_ms, read_ms (a step that is ranked by), read_share (of its passes,
    what such a step has more), evaluate_image_ms, parameter_bytes, buffer_bytes, peak_bytes, seconds, steps, epochs;
    and what it was of: stream, samples, batch_size, drop_last, single_head, model, width, threads, device, isa.
    """
    from sparcl.report.write import check_place, write_text
    from sparcl.run import bench as steps
    from sparcl.run import job as jobs

    console = _console()
    if json_ is not None:
        check_place(json_)  # a measurement takes minutes
    of_job = {"stream": stream, "method": method, "buffer_size": buffer_size, "device": device}

    def tell(what: str) -> None:
        console.print(what, highlight=False)

    if job:
        base = {**of_job, "model": model, "width": width, "batch_size": batch_size, "threads": threads}
        base = {k: v for k, v in {**base, "stream": stream or "seq-cifar10"}.items() if v is not None}
        if compile_:
            raise ConfigError("--compile goes without --job, whose rows are all trained as `sparcl run` does")
        experiments = jobs.rows_of(base, sparsifier or ["sparcl"], sparsity, pattern, block_size, activations)
        rows = jobs.measure(experiments, 60.0 if seconds is None else seconds, samples, tell)
        console.print(jobs.as_table(rows))
    else:
        asked = {**of_job, "seconds": seconds, "samples": samples, "sparsifier": sparsifier}
        if given := [k for k, v in asked.items() if v is not None]:
            raise ConfigError(f"--{given[0].replace('_', '-')} goes with --job")
        rows = steps.measure_all(
            model=model or "resnet18",
            width=width,
            batch=batch_size,
            threads=threads,
            sparsities=sparsity or jobs.SPARSITIES,
            patterns=pattern or ["unstructured", "block"],
            block_size=block_size,
            activations=activations or "float32",
            compiled=compile_,
            tell=tell,
        )
        console.print(steps.as_table(rows))  # first: the measurement is not lost where the file cannot be written
    if json_ is not None:
        write_text(json_, json.dumps(rows, indent=2) + "\n")


def _console() -> Console:
    """Where a command speaks."""
    return CommandConsole()


def _tell_written(files: Sequence[Path], more: str = "") -> None:
    told = neutral.line(f"written: {', '.join(map(str, files))}{more}")
    _console().print(told, highlight=False, soft_wrap=True)
