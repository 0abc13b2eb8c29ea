"""What a finished run leaves for use: the weights, what an answer needs beside them, and a page that says so."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from torch import Tensor, nn

from sparcl import named
from sparcl.checkpoint import disk
from sparcl.checkpoint.files import safetensors_parts
from sparcl.errors import ConfigError, one_line
from sparcl.learner import Learner
from sparcl.methods.method import Method
from sparcl.nn.convert import dense_state_dict
from sparcl.report import write as write_report
from sparcl.run.experiment import Experiment
from sparcl.run.record import RunDirectory, write_atomically
from sparcl.streams.augment import Transform, label_of
from sparcl.streams.task import Stream

MODEL, ANSWERS = "model.safetensors", "answers.safetensors"


def data(stream: Stream) -> dict[str, Any]:
    """The section `data` of result.json: which samples, what their classes are called, how they were normalised."""
    first = stream.tasks[0]
    normalize = first.transform.normalize
    return {
        "fingerprint": stream.fingerprint,
        "input_shape": list(stream.input_shape),
        "input_dtype": str(first.train.inputs.dtype).removeprefix("torch."),
        "mean": list(normalize.mean),
        "std": list(normalize.std),
        "augment": augmentation(first.transform),
        "class_names": list(stream.class_names),
        "tasks": [list(task.classes) for task in stream.tasks],
    }


def augmentation(transform: Transform) -> list[str]:
    """What training images went through: `crop`, `flip`, and the name of a function of the user's own."""
    own = transform.augment
    named = [] if own is None else [label_of(own)]
    return [*(["crop"] if transform.crop_padding else []), *(["flip"] if transform.flip else []), *named]


def model(method: Method) -> dict[str, Any]:
    """The section `model` of result.json: whether the weights give the answers that were measured."""
    if method.answers_need is None:
        return {"file": MODEL, "answers_alone": True, "needs": None}
    return {"file": MODEL, "answers_alone": False, "needs": {"file": ANSWERS, "what": method.answers_need}}


def save(directory: RunDirectory, learner: Learner, stream: Stream, experiment: Experiment) -> None:
    """Write the weights, what else an answer needs, and README.md."""
    with learner.averaged():
        disk.replace_file(directory.model, safetensors_parts(dense_state(learner.model)))
    if learner.method.answers_need is not None:
        state = learner.answer_state(stream.tasks[0])
        own = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        disk.replace_file(directory.answers, safetensors_parts(own))
    write_atomically(directory.readme, readme(learner.method, stream, experiment))


def write_page(directory: RunDirectory, console: Console) -> None:
    """report.html; where it cannot be written the run is none the worse."""
    for left in directory.path.glob(".sparcl-*.tmp"):  # by one that was killed
        left.unlink(missing_ok=True)
    try:
        write_report([directory.path], "html", directory.page)
    except ConfigError as error:
        told = str(error)
    except Exception as error:  # a defect of the page must not make a finished run fail
        told = f"a defect of the page, please report it ({one_line(error)})"
    else:
        return
    console.print(f"no report.html: {told}", highlight=False, soft_wrap=True)


def dense_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict as dense, contiguous CPU tensors, by name, whichever backend trained it."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in dense_state_dict(model).items()}


def readme(method: Method, stream: Stream, experiment: Experiment) -> str:
    """What the files are and how the network answers, for someone who finds the directory."""
    task_il = "class-il" not in method.scenarios
    state, load, argument = "", "{}", ""
    if method.answers_need is not None:
        state = (
            f"\n**The weights alone do not give the measured answers.** They need {method.answers_need}: `{ANSWERS}`.\n"
        )
        load = f'load_file("{ANSWERS}")'
    if task_il:
        argument = ", task=0"
        state += "\nThe task must be named; of its logits only the columns of its own classes count (`data.tasks`).\n"
    own = [name for name in (experiment.model, experiment.method) if name is not None and named.is_own(name)]
    if own:
        state += f"\n{' and '.join(own)} must be importable (`PYTHONPATH`): nothing in this folder is executed.\n"
    shape = ", ".join(map(str, stream.input_shape))
    return f"""# {experiment.name}

`{MODEL}` holds the weights (PyTorch's names), `result.json` what was measured, `config.toml` every setting.
Class names (by column of the logits), mean and standard deviation of the normalisation: `data` in `result.json`.
{state}
```python
import json
import torch
from safetensors.torch import load_file
from sparcl import methods, nn

known = json.load(open("result.json"))["data"]
model = nn.build("{experiment.model}", {stream.n_classes}, ({shape},), {experiment.width}).eval()
model.load_state_dict(load_file("{MODEL}"))
mean, std = (torch.tensor(known[k]).view(-1, *[1] * {len(stream.input_shape) - 1}) for k in ("mean", "std"))
x = (pixels / 255 - mean) / std  # pixels: uint8 [N, {shape}]; floating inputs are not divided by 255
logits = methods.find("{experiment.method}").answer(model, x, {load}{argument})
```

Or by command: `sparcl predict . FILES` names the classes of images and `.npy` arrays, `sparcl export . --out
network.safetensors` writes the network with the code that loads it without sparcl (`--format onnx`: for ONNX Runtime).
"""
