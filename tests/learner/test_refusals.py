"""What the Learner refuses: before any work where it can be known, else at the step that shows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nn.native import needs_native
from torch import Tensor, nn
from toys import Bag, Net, blobs, make_learner

from sparcl import DDR, DGM, TDM, Learner, SparCL
from sparcl.checkpoint import Store
from sparcl.errors import ConfigError, DataError, DataWarning, TrainingError
from sparcl.methods import ER, METHODS, DERpp, Finetune, Joint
from sparcl.nn import ConvNet
from sparcl.sparsity import Static
from sparcl.streams import Samples, Task, Transform


class Failing(nn.Module):
    """A network that answers NaN at the seventh batch it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.batches = Net(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.batches += self.training
        answer: Tensor = self.net(x)
        return answer * (float("nan") if self.batches == 7 else 1.0)


def test_a_loss_that_is_not_a_number_stops_training_and_says_where() -> None:
    learner = make_learner(model=Failing(), method=Finetune(), sparsifier=None, batch_size=10)
    with pytest.raises(TrainingError, match="task 1, epoch 2, step 3") as caught:
        learner.learn(blobs()[0])
    assert "\n" not in str(caught.value)
    assert all(bool(torch.isfinite(p).all()) for p in learner.model.parameters())


def test_a_learning_rate_that_diverges_is_noticed_under_every_sparsifier() -> None:
    for sparsifier in (None, SparCL(0.5), SparCL(0.5, pattern="block"), TDM(0.5), DGM(), DDR()):
        learner = make_learner(sparsifier=sparsifier, optimizer=None, lr=1e12, epochs=20)
        with pytest.raises(TrainingError, match=r"task 1, epoch \d+, step \d+"):
            learner.learn(blobs()[0])


def test_a_task_with_one_sample_or_out_of_turn_is_refused() -> None:
    first, second = blobs()
    one = Task(0, first.classes, Samples(first.train.inputs[:1], first.train.labels[:1]), first.test, Transform())
    with pytest.raises(DataError, match=r"task 1: class '1' has no training samples"):
        make_learner().learn(one)
    with pytest.raises(ConfigError, match="task 1 is the next"):
        make_learner().learn(second)
    learner = make_learner(method=Joint())
    learner.learn(first)
    with pytest.raises(ConfigError, match="merged"):
        learner.learn(second)


@pytest.mark.parametrize("sparsifier", [SparCL, TDM, DGM])
def test_a_model_without_prunable_layers_is_refused_before_any_work(sparsifier: Callable[[], Any]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 4))
    before = model[1].weight.detach().clone()
    with pytest.raises(ConfigError, match="no prunable layer"):
        Learner(model, sparsifier=sparsifier())
    assert torch.equal(model[1].weight, before)
    make_learner(model=model, sparsifier=DDR()).learn(blobs()[0])  # what prunes nothing needs none


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs 0"),
        ({"batch_size": 0}, "batch size 0"),
        ({"batch_size": 1}, r"batch size 1 is not allowed with layer norm1 \(BatchNorm2d\).*use 2 or more"),
        ({"replay_batch_size": 0}, "replay batch size 0"),
        ({"replay_batch_size": 1}, "replay batch size 1"),
        ({"optimizer": None, "lr": 0.0}, "learning rate 0.0"),
        ({"optimizer": None, "lr": float("nan")}, "learning rate nan"),
        ({"optimizer": torch.optim.LBFGS}, "optimizer LBFGS"),
        ({"optimizer": torch.optim.LBFGS, "sparsifier": None}, "optimizer LBFGS"),
        ({"optimizer": torch.optim.LBFGS, "sparsifier": DDR()}, "optimizer LBFGS"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_learner(**options)
    assert "\n" not in str(caught.value)


def test_blocks_that_do_not_fit_are_refused_and_name_the_layer() -> None:
    with pytest.raises(ConfigError, match="layer tiny has 4"):
        make_learner(model=Bag(), sparsifier=SparCL(0.5, pattern="block", block_size=8, prunable=["tiny"]))


class Unlike(nn.Module):
    """Answers what `change` makes of the logits."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.change = Net(), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.net(x))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Net(classes=3), "3 logits, but task 2 has class 3"),
        (lambda: Net().double(), r"does not take the task's inputs, float32 \[8, 2, 6, 6\]"),
        (lambda: Net().bfloat16(), "does not take the task's inputs"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(71, 4)), "does not take the task's inputs"),
        (lambda: Unlike(lambda logits: (logits, logits)), "with a tuple; logits"),
        (lambda: Unlike(lambda logits: logits.mean(1)), r"with shape \[8\]; logits"),
    ],
)
def test_a_model_that_does_not_fit_the_task_is_refused_before_its_first_step(
    model: Callable[[], nn.Module], message: str
) -> None:
    told: list[str] = []
    learner = make_learner(model=model(), sparsifier=None, observers=[lambda event, _: told.append(event)])
    first, second = blobs()
    if "task 2" in message:
        learner.learn(first)
        told.clear()
    with pytest.raises(ConfigError, match=message) as caught:
        learner.learn(second if "task 2" in message else first)
    assert "\n" not in str(caught.value)
    assert told == []
    assert learner.position is None


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_label_without_a_logit_is_refused(part: str) -> None:
    task = blobs()[0]
    getattr(task, part).labels[3] = 7
    with pytest.raises(DataError, match=r"task 1: .* label 7 of sample 3 is out of range: allowed are 0 to 1"):
        make_learner().learn(task)


class Auxiliary(Net):
    """Defines a layer after its classifier: an unused one, or one whose answers are of no use."""

    def __init__(self, used: bool) -> None:
        super().__init__()
        self.used, self.last = used, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits + 0 * self.last(logits).sum() if self.used else logits


@pytest.mark.parametrize("method", ["icarl", "packnet", "lps"])
@pytest.mark.parametrize("used", [False, True])
def test_a_method_that_cannot_find_the_classifier_says_so(method: str, used: bool) -> None:
    learner = make_learner(model=Auxiliary(used), method=METHODS[method](), sparsifier=None)
    with pytest.raises(ConfigError, match=f"method {method} takes the last convolution or linear layer"):
        learner.learn(blobs()[0])


# --- hints that lead somewhere ----------------------------------------------------------------------------------------


def signals() -> nn.Module:
    """ConvTranspose1d layers and one linear layer; for inputs [N, 2, 36]."""
    return nn.Sequential(
        nn.ConvTranspose1d(2, 8, 3),
        nn.ReLU(),
        nn.ConvTranspose1d(8, 8, 3),
        nn.ConvTranspose1d(8, 8, 3),
        nn.Flatten(),
        nn.Linear(336, 4),
    )


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_layers_that_cannot_be_pruned_are_named_as_what_they_are(backend: str) -> None:
    with pytest.raises(ConfigError, match=r"found: 5; not prunable: ConvTranspose1d\)"):
        make_learner(model=signals(), backend=backend)
    with pytest.raises(ConfigError, match="prunable layer '2' is a ConvTranspose1d: only Conv1d, Conv2d and Linear"):
        make_learner(model=signals(), backend=backend, sparsifier=SparCL(0.5, prunable=["2"]))
    with pytest.raises(ConfigError, match="prunable layer '9' matches none of: 5"):
        make_learner(model=signals(), backend=backend, sparsifier=SparCL(0.5, prunable=["9"]))
    bare = nn.Sequential(nn.ConvTranspose1d(2, 8, 3), nn.ConvTranspose1d(8, 4, 34), nn.Flatten())
    with pytest.raises(
        ConfigError, match=r"found: none; not prunable: ConvTranspose1d\)$"
    ):  # and no `prunable` to name them in
        make_learner(model=bare, backend=backend)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_images_with_their_channels_last_are_recognised(backend: str) -> None:
    def last(samples: Samples) -> Samples:
        return Samples(samples.inputs.permute(0, 2, 3, 1), samples.labels)

    first = blobs()[0]
    assert first.test is not None
    task = Task(0, first.classes, last(first.train), last(first.test))
    learner = make_learner(backend=backend)
    with pytest.raises(ConfigError, match=r"float32 \[8, 6, 6, 2\]: .*give \.permute\(0, 3, 1, 2\) of them") as caught:
        learner.learn(task)
    assert "\n" not in str(caught.value)
    learner.learn(first)


class Lazy(nn.Module):
    """Knows its inputs' size after the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(12), nn.LazyLinear(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("sparsifier", [None, lambda: SparCL(0.5)])
def test_a_lazy_model_is_to_be_run_once_and_then_learns(backend: str, sparsifier: Any) -> None:
    model, first = Lazy(), blobs()[0]
    with pytest.raises(ConfigError, match=r"layers\.0\.weight .*lazy module\): run one batch through the model first"):
        make_learner(model=model, backend=backend, sparsifier=sparsifier and sparsifier())
    model(first.train.inputs[:2])
    make_learner(model=model, backend=backend, sparsifier=sparsifier and sparsifier()).learn(first)


NAN = float("nan")
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": lambda x: x}, r"model <function .* is not allowed; use an object such as sparcl.nn.resnet18"),
    "no model": ({"model": None}, "model None is not allowed; use an object such as sparcl.nn.resnet18"),
    "method by name": ({"method": "derpp"}, r"method 'derpp' is not allowed; use an object such as .*DERpp\(200\)"),
    "empty method": ({"method": ""}, "method '' is not allowed; use an object"),
    "class of method": ({"method": DERpp}, "method the class DERpp is not allowed; use an object such as"),
    "sparsifier by name": ({"sparsifier": "sparcl"}, r"sparsifier 'sparcl' is not allowed; use .*SparCL\(0.9\)"),
    "class of sparsifier": ({"sparsifier": SparCL}, "sparsifier the class SparCL is not allowed"),
    "sparsity": ({"sparsifier": 0.0}, "sparsifier 0.0 is not allowed"),
    "optimizer": ({"optimizer": "sgd"}, "optimizer 'sgd' is not allowed; use a function that makes one of parameters"),
    "made optimizer": (
        {"optimizer": torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)},
        r"optimizer SGD \( Parameter Group 0 .* is not allowed; use a function that makes one",
    ),
    "no numbers": ({"model": Net().to("meta")}, r"\S+ of the model holds no numbers \(device meta\)"),
    "observer": ({"observers": print}, "observers .* are not allowed; use a list of functions"),
    "observers": ({"observers": [1]}, r"observers \[1\] are not allowed; use a list of functions"),
    "lr": ({"lr": "0.1"}, "learning rate '0.1' is not allowed; use a number above 0"),
    "batch size": ({"batch_size": 2.5}, "batch size 2.5 is not allowed; use 1 or more"),
    "replay batch size": ({"replay_batch_size": "8"}, "replay batch size '8' is not allowed; use 1 or more"),
    "micro-batch": ({"micro_batch": 1.5}, "micro-batch 1.5 is not allowed; use 1 to the batch size"),
    "weight decay": ({"weight_decay": NAN}, "weight decay nan is not allowed; use 0 or more"),
    "seed": ({"seed": "a"}, "seed 'a' is not allowed; use a whole number"),
    "half a seed": ({"seed": 1.5}, "seed 1.5 is not allowed; use a whole number"),
    "seconds": ({"epochs": None, "seconds": "5"}, "seconds '5' is not allowed; use a number above 0"),
    "device": ({"device": "tpu"}, "device 'tpu' is not allowed; use cpu or one that PyTorch has"),
    "freeze": ({"freeze": 3}, "freeze 3 is not allowed; use names or shell patterns"),
    "classes": ({"classes": 4}, "classes 4 are not allowed; use a list of names"),
    "classes as one word": ({"classes": "cup"}, "classes 'cup' are not allowed; use a list of names"),
    "classes without an order": ({"classes": {"a", "b"}}, "are not allowed; use a list of names"),
    "negative seed": ({"seed": -1}, "seed -1 is not allowed; use a whole number from 0 to 9223372036854775807"),
    "large seed": ({"seed": 2**80}, "use a whole number from 0 to 9223372036854775807"),
    "device without memory": ({"device": "meta"}, "device 'meta' is not allowed; use cpu or one that PyTorch has"),
    "a pace for no task": ({"pace": [1]}, "a pace is 200 rising numbers of steps for each task"),
    "an empty pace": ({"pace": [[]]}, "a pace is 200 rising numbers of steps for each task"),
    "layer choice as a word": (
        {"layer_choice": "dense"},
        "layer choice 'dense' is not allowed; use Learner.layer_choic",
    ),
    "seed as a flag": ({"seed": True}, "seed True is not allowed"),
    "checkpoint_dir as nothing": ({"checkpoint_dir": ""}, "checkpoint dir '' is not allowed; use the path of a folder"),
    "drop_last": ({"drop_last": 1}, "drop_last 1 is not allowed; use True or False"),
    "no optimizer": ({"optimizer": lambda _: None}, r"optimizer makes a NoneType; a torch.optim.Optimizer is needed"),
    "schedule for an optimizer": (
        {"optimizer": lambda p: torch.optim.lr_scheduler.ConstantLR(torch.optim.SGD(p, lr=0.1))},
        "optimizer makes a ConstantLR",
    ),
    "one side": ({"input_shape": 8}, "input shape 8 is not allowed; use the sizes of a sample"),
    "shape as text": ({"input_shape": "3x8"}, "input shape '3x8' is not allowed"),
    "warm-up": ({"warmup": True}, "warmup True is not allowed"),
    "checkpoint_dir": ({"checkpoint_dir": 3}, "checkpoint dir 3 is not allowed; use the path of a folder"),
    "checkpoint_every": ({"checkpoint_every": 5}, "checkpoint every 5 has no effect without checkpoint_dir"),
    "replay without a buffer": ({"replay_batch_size": 8}, "replay batch size 8 has no effect: method finetune has no"),
    "layer choice without a mask": (
        {"layer_choice": {"conv": "dense"}},
        "a layer choice has no effect with sparsifier d",
    ),
    "prunable": ({"sparsifier": lambda: SparCL(0.5, prunable=3)}, "`prunable` is a list of names or patterns"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_of_its_kind_is_one_line(name: str) -> None:
    options, told = WRONG[name]
    if name == "prunable":
        options = {"sparsifier": options["sparsifier"]()}
    settings = {"model": Net(), "method": Finetune(), "epochs": 1, **options}
    with pytest.raises(ConfigError, match=told) as caught:
        Learner(settings.pop("model"), settings.pop("method"), **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: SparCL("0.9"), "sparsity '0.9' is not allowed for SparCL; use a number"),
        (lambda: SparCL(0.9, pattern="block", block_size="4"), "block size '4' is not allowed for SparCL; use a whole"),
        (lambda: Static([0.9]), r"sparsity \[0.9\] is not allowed for Static; use a number"),
        (lambda: DERpp("200"), "buffer size '200' is not allowed for DERpp; use a whole number"),
        (lambda: DERpp(10, alpha="a"), "alpha 'a' is not allowed for DERpp; use a number"),
        (lambda: ER(10, single_head="no"), "single head 'no' is not allowed for ER; use True or False"),
        (lambda: ER(10, buffer_policy=1), "buffer policy 1 is not allowed for ER; use a name"),
        (lambda: TDM(0.9, alpha=NAN), "alpha nan is not allowed: a gradient's weight is a number of 0 or more"),
        (lambda: DGM(beta=-1.0), "beta -1.0 is not allowed: a gradient's weight is a number of 0 or more"),
        (lambda: ConvNet("10"), "is not allowed for ConvNet; use a whole number"),
    ],
)
def test_an_argument_of_another_type_is_one_line(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make()


def test_a_layer_choice_on_the_reference_backend_is_refused_and_one_that_auto_cannot_follow_is_not() -> None:
    choice = {"conv": "dense", "grouped": "native"}
    with pytest.raises(ConfigError, match="a layer choice has no effect with backend reference: leave it out"):
        make_learner(layer_choice=choice)
    learner = make_learner(model=Net().double(), backend="auto", layer_choice=choice)
    assert (learner.backend, learner.layer_choice) == ("reference", choice)


def test_a_replay_batch_size_that_never_had_an_effect_is_no_reason_to_refuse_a_checkpoint(tmp_path: Path) -> None:
    learner = make_learner(model=ConvNet(4, 2, 8), method=Finetune(), optimizer=None)
    learner.learn(blobs()[0])
    state = learner.checkpoint_state()
    state["settings"]["replay_batch_size"] = 64  # as Learner(Finetune(), replay_batch_size=64) had it
    Store(tmp_path).save(1, state)
    loaded = Learner.load(tmp_path, backend="reference")
    for one in (learner, loaded):
        one.learn(blobs()[1])
    same = zip(learner.model.parameters(), loaded.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    def learner(whole: Callable[[int], Any], real: Callable[[float], Any], flag: Callable[[bool], Any]) -> Learner:
        method = DERpp(whole(5), alpha=real(0.5), single_head=flag(False))
        sparsifier = SparCL(real(0.75), pattern="block", block_size=whole(2))
        settings = {"lr": real(0.25), "epochs": whole(2), "batch_size": whole(8), "seed": whole(3)}
        return Learner(ConvNet(4, 2, 8), method, sparsifier, **settings)

    learner(np.int64, np.float32, np.bool_).save(tmp_path / "numpy")
    learner(int, float, bool).save(tmp_path / "python")
    for name in ("state.json", "manifest.json"):
        assert (tmp_path / "numpy" / "step-0" / name).exists()
    one, other = ((tmp_path / name / "step-0" / "state.json").read_text() for name in ("numpy", "python"))
    assert one == other
    assert Learner.load(tmp_path / "numpy").batch_size == 8


@pytest.mark.parametrize(("name", "value"), [("lr", 0.1), ("lr", 0.03), ("weight_decay", 0.0)])
def test_a_rate_beside_an_optimizer_that_has_its_own_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{name}={value} has no effect beside optimizer: give it to that"):
        make_learner(**{name: value})  # with an optimizer of the test's own
    group = make_learner(optimizer=None, **{name: value}).optimizer.param_groups[0]
    assert {"lr": 0.03, "weight_decay": 0.0, name: value}.items() <= group.items()


class Shuffled(nn.Module):
    """A network that calls its layers in one order and defines them in another."""

    def __init__(self, *order: str) -> None:
        super().__init__()
        parts = {"stem": nn.Conv2d(2, 8, 3), "body": nn.Conv2d(8, 8, 3), "more": nn.Conv2d(8, 8, 1)}
        for name in order:
            self.add_module(name, nn.Linear(8, 4) if name == "head" else parts[name])

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.more(self.body(self.stem(x).relu()).relu()).mean((2, 3)))
        return answer


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("arrives", ["learn", "observe"])
@pytest.mark.parametrize(
    ("order", "told"),
    [
        (("head", "stem", "body", "more"), "layer stem meets the inputs first and is pruned.*of: body, more"),
        (("stem", "head", "body", "more"), "layer head makes the logits and is pruned.*of: body, more"),
        (("stem", "body", "more", "head"), None),
    ],
)
def test_a_first_or_last_layer_that_is_pruned_is_told_once(
    order: tuple[str, ...], told: str | None, arrives: str, backend: str
) -> None:
    first, second = blobs()

    def go(sparsifier: Any) -> None:
        learner = Learner(Shuffled(*order), ER(10), sparsifier, backend=backend)
        if arrives == "observe":
            for task in (first, second):
                learner.observe(task.train.inputs[:4], task.train.labels[:4])
        else:
            learner.learn(first)
            learner.learn(second)

    for quiet in (SparCL(0.5, prunable=["body"]), None):
        go(quiet)
    if told is None:
        return go(SparCL(0.5))
    with pytest.warns(DataWarning, match=told) as caught:
        go(SparCL(0.5))
    assert len(caught) == 1
    return None


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: SparCL(None), "sparsity"),
        (lambda: DGM(None), "frozen"),
        (lambda: TDM(0.5, batches=None), "batches"),
        (lambda: DERpp(10, alpha=None), "alpha"),
    ],
)
def test_none_is_no_number(make: Callable[[], Any], name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} None is not allowed for"):
        make()
    SparCL(0.5, prunable=None)
