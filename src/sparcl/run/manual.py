"""What `--help` shows beside each option's own line, and what the parser's refusals say of how to go on."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

EXAMPLES: dict[str, tuple[str, ...]] = {
    "run": (
        "sparcl run seq-digits",
        "sparcl run seq-cifar10 --data data --method er --sparsity 0.95 --seed 1",
        "sparcl run folder --data photos --resize 32 --out runs/photos",
        "sparcl run --config runs/photos/config.toml --out runs/again",
    ),
    "watch": ("sparcl watch runs/photos",),
    "predict": (
        "sparcl predict runs/photos new/*.png",
        "sparcl predict runs/photos samples.npy --format csv --top 3",
    ),
    "export": (
        "sparcl export runs/photos --out photos.safetensors",
        "sparcl export runs/photos --format onnx --out photos.onnx",
        "sparcl export runs/photos --format device --out photos.sparcl",
    ),
    "pack": ("sparcl pack folder --data photos --task 1 --out photos-1.sparcl",),
    "report": ("sparcl report runs", "sparcl report runs/one runs/two --format html --out report.html"),
    "sweep": (
        "sparcl sweep experiments/table1.toml --jobs 2",
        "sparcl sweep experiments/table1.toml --launcher slurm --time 4:00:00",
    ),
    "info": ("sparcl info", "sparcl info --json"),
    "bench": ("sparcl bench --threads 2", "sparcl bench --job --stream seq-cifar10 --seconds 60"),
}
"""Under a command's help; what they name is to be replaced."""

PANELS: dict[str, tuple[str, ...]] = {
    "What arrives": (
        *("data", "classes_per_task", "class_order_seed", "limit_per_class", "limit_test_per_class"),
        *("resize", "scenario"),
    ),
    "How it is learned": (
        *("method", "preset", "option", "buffer_size", "epochs", "steps", "max_seconds"),
        *("batch_size", "micro_batch", "lr", "weight_decay", "model", "width", "init", "seed"),
    ),
    "What is computed": (
        *("sparsifier", "sparsity", "pattern", "block_size", "distribution", "prunable", "first_mask"),
        *("gradient_sparsity", "sample_removal", "ddr_score", "importance", "ranking"),
    ),
    "With what": ("activations", "backend", "device", "threads", "max_memory"),
    "Either or": ("single_head", "drop_last"),
}
"""The options of `sparcl run` by the axis that they belong to; those that are not named stand first."""


class Commands(TyperGroup):
    """The commands, their help in order: examples below, a run's options by axis."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name, or None."""
        command: Any = super().get_command(ctx, cmd_name)
        if command is None or command.epilog or cmd_name not in EXAMPLES:
            return command
        command.epilog = "\n\n".join(["Examples:", *EXAMPLES[cmd_name]])
        first, *rest = (command.help or "").split("\n\n")
        command.help = "\n\n".join([first, *(" ".join(paragraph.split()) for paragraph in rest)])
        if cmd_name == "run":
            panels = {name: panel for panel, names in PANELS.items() for name in names}
            for parameter in command.params:
                parameter.rich_help_panel = panels.get(parameter.name)
        return command


def refusal(error: Any) -> str:
    """What the parser refuses, in one line: what is missing or too much with the command's usage beside it."""
    said, context = error.format_message().rstrip("."), error.ctx
    if context is None:
        return str(said)
    kind, meant = type(error).__name__, getattr(getattr(error, "param", None), "help", None)
    if kind == "MissingParameter" and meant:
        said = f"{said} ({meant})"
    if commands := getattr(context.command, "commands", None):
        return f"{said}; commands: {', '.join(commands)}"
    if kind not in ("MissingParameter", "UsageError"):
        return str(said)
    usage = " ".join(context.get_usage().split()).removeprefix("Usage: ")
    return f"{said}; usage: {usage} (--help says more)"
