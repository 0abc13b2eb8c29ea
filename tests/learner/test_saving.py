"""`Learner.save` and `Learner.load`: everything comes back, on either backend, to the last bit."""

from __future__ import annotations

import copy
import filecmp
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import Net, blobs

import sparcl
from sparcl import kernels
from sparcl.checkpoint import Store, files, tree
from sparcl.errors import CheckpointError, ConfigError, DataError, TrainingError
from sparcl.learner import SAFE, saving
from sparcl.methods import ER, DERpp, ICaRL, Method
from sparcl.nn import ConvNet
from sparcl.sparsity import RigL

NATIVE = pytest.mark.skipif(not kernels.available(), reason="the compiled part is missing")
BACKENDS = ["reference", pytest.param("native", marks=NATIVE)]
ACROSS = [
    ("reference", "reference"),
    *(pytest.param(*p, marks=NATIVE) for p in [("native", "reference"), ("reference", "native")]),
]
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, initial_accumulator_value=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}
SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 8}


def stream() -> sparcl.streams.Stream:
    return blobs(tasks=2, per_class=24, flip=True)


def made(backend: str, optimizer: str = "sgd", pattern: str = "unstructured", **options: Any) -> sparcl.Learner:
    torch.manual_seed(0)
    model, sparsifier = ConvNet(4, 2, 8), sparcl.SparCL(0.75, pattern=pattern)
    make = OPTIMIZERS[optimizer]
    return sparcl.Learner(model, DERpp(20), sparsifier, optimizer=make, backend=backend, **SETTINGS, **options)


def same_files(one: Path, other: Path) -> bool:
    return all(filecmp.cmp(one / name, other / name, shallow=False) for name in (files.STATE, files.TENSORS))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("pattern", ["unstructured", "block"])
@pytest.mark.parametrize(("saves", "loads"), ACROSS)
def test_saved_by_one_backend_loaded_and_saved_by_the_other_is_the_same_bytes(
    tmp_path: Path, saves: str, loads: str, pattern: str, optimizer: str
) -> None:
    first = made(saves, optimizer, pattern, checkpoint_dir=tmp_path / "first", checkpoint_every=17)
    for task in stream():
        first.learn(task)
    (middle,) = [p for p in (tmp_path / "first").iterdir() if p.name == "step-17"]
    second = sparcl.Learner.load(middle, backend=loads)
    assert second.position is not None
    assert (second.position.task, second.steps) == (1, 17)
    assert same_files(middle, second.save(tmp_path / "second"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loaded_learner_goes_on_to_the_same_bits(tmp_path: Path, backend: str) -> None:
    whole = made(backend, "adamw", checkpoint_dir=tmp_path / "all", checkpoint_every=5)
    for task in stream():
        whole.learn(task)
    end = whole.save(tmp_path / "end")
    for folder in sorted((tmp_path / "all").glob("step-*")):
        resumed = sparcl.Learner.load(folder, backend=backend)
        for task in stream()[resumed.learned :]:
            resumed.learn(task)
        assert same_files(end, resumed.save(tmp_path / folder.name))


def test_a_model_and_an_optimizer_of_ones_own_are_passed_in(tmp_path: Path) -> None:
    def make(parameters: Any) -> torch.optim.Optimizer:
        split = list(parameters)
        return torch.optim.SGD([{"params": split[:3]}, {"params": split[3:], "momentum": 0.5}], lr=0.05)

    own = sparcl.Learner(Net(), ER(10), RigL(0.5, every=2), optimizer=make, backend="reference", **SETTINGS)
    own.learn(stream()[0])
    folder = own.save(tmp_path)
    with pytest.raises(CheckpointError, match="model was made"):
        sparcl.Learner.load(tmp_path)
    with pytest.raises(CheckpointError, match="optimizer"):
        sparcl.Learner.load(tmp_path, Net())
    loaded = sparcl.Learner.load(tmp_path, Net(seed=5), optimizer=make, backend="reference")
    assert same_files(folder, loaded.save(tmp_path / "again"))
    with pytest.raises(CheckpointError, match="made with another method"):
        sparcl.Learner.load(tmp_path, Net(), ER(11), optimizer=make)
    with pytest.raises(CheckpointError, match="parameter group"):
        sparcl.Learner.load(tmp_path, Net(), optimizer=OPTIMIZERS["sgd"])


def scheduled(parameters: Any) -> torch.optim.Optimizer:
    """Schedulers keep what they know of a group in the group."""
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=100)
    return optimizer


OWN_GROUPS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "a name": lambda p: torch.optim.SGD([{"params": list(p), "name": "all", "tags": ["a", 1, None]}], lr=0.05),
    "names": lambda p: torch.optim.AdamW([(f"p{i}", q) for i, q in enumerate(p)], lr=0.01),
    "a scheduler": scheduled,
}


@pytest.mark.parametrize("kind", OWN_GROUPS)
def test_what_a_parameter_group_holds_beside_its_options_comes_back(tmp_path: Path, kind: str) -> None:
    make = OWN_GROUPS[kind]
    learner = sparcl.Learner(ConvNet(4, 2, 8), DERpp(20), sparcl.SparCL(0.75), optimizer=make, **SETTINGS)
    learner.learn(stream()[0])
    folder = learner.save(tmp_path)
    for optimizer in (make, None):  # also without: an option of the default optimizer's kind, and the rest beside it
        loaded = sparcl.Learner.load(tmp_path, optimizer=optimizer)
        assert loaded.optimizer.param_groups[0].keys() >= learner.optimizer.param_groups[0].keys()
        assert same_files(folder, loaded.save(tmp_path / "again"))


class Counting(Net):
    """A model with a state beside its tensors."""

    def __init__(self, **state: Any) -> None:
        super().__init__()
        self.state: dict[str, Any] = state or {"batches": 0, "mean": torch.zeros(3)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.state["batches"] += 1
        return super().forward(x)

    def get_extra_state(self) -> dict[str, Any]:
        return self.state

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.state = state


def test_the_extra_state_of_a_module_comes_back_or_is_refused(tmp_path: Path) -> None:
    learner = sparcl.Learner(Counting(), ER(10), sparcl.SparCL(0.5), backend="reference", **SETTINGS)
    learner.learn(stream()[0])
    learner.model.state["mean"] += 1
    learner.save(tmp_path)
    loaded = sparcl.Learner.load(tmp_path, Counting(), backend="reference")
    assert tree.difference(loaded.model.state, learner.model.state) is None
    assert loaded.model.state["batches"] > 10
    with pytest.raises(CheckpointError, match="'_extra_state'"):
        sparcl.Learner.load(tmp_path, Net())
    learner.model.state["open"] = object()
    with pytest.raises(CheckpointError, match="_extra_state/open is a object"):
        learner.save(tmp_path)


def test_nothing_that_is_nan_is_saved(tmp_path: Path) -> None:
    learner = made("reference")
    learner.save(tmp_path)
    with torch.no_grad():
        next(learner.model.parameters())[0] = float("nan")
    with pytest.raises(TrainingError, match="NaN"):
        learner.save(tmp_path)
    assert sparcl.Learner.load(tmp_path).steps == 0


def test_another_task_than_the_one_it_stands_in_is_refused(tmp_path: Path) -> None:
    learner = made("reference", checkpoint_dir=tmp_path, checkpoint_every=3)
    learner.learn(stream()[0])
    loaded = sparcl.Learner.load(tmp_path)
    with pytest.raises(CheckpointError, match="other data"):
        loaded.learn(blobs(tasks=2, per_class=24, seed=1)[0])


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> tree.State:
    place = tmp_path_factory.mktemp("state")
    made("reference", "adamw", checkpoint_dir=place, checkpoint_every=5).learn(stream()[0])
    loaded = Store(place).load()
    assert loaded is not None
    return loaded.state


def first_layer(state: tree.State) -> Any:
    return state["layers"][min(state["layers"])]


def buffer(state: tree.State) -> Any:
    return state["learner"]["method"]["buffer"]


def arguments(state: tree.State, part: str) -> Any:
    return state["settings"]["made_from"][part]["arguments"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: first_layer(s)["index"].__setitem__(0, -1), "entries outside"),
        (lambda s: first_layer(s)["index"].__setitem__(-1, 1 << 30), "entries outside"),
        (lambda s: first_layer(s)["index"].__setitem__(1, first_layer(s)["index"][0]), "not ascending"),
        (lambda s: first_layer(s).update(index=first_layer(s)["index"].long()), "int32"),
        (lambda s: first_layer(s).update(values=first_layer(s)["values"][1:]), "values"),
        (lambda s: first_layer(s).update(chosen=torch.ones(1, dtype=torch.bool)), "chosen"),
        (lambda s: first_layer(s).update(shape=[1, 2, 3, 4]), "shape"),
        (lambda s: s["model"].update({"0.weight": torch.zeros(1)}), "0.weight"),
        (lambda s: s["model"].pop("0.weight"), "lacks '0.weight'"),
        (lambda s: s["optimizer"].update(kind="LBFGS"), "optimizer"),
        (lambda s: s["optimizer"]["groups"][0].update(lr=-1.0), "does not fit"),
        (lambda s: s["optimizer"]["groups"][0].update(lr=None), "the optimizer's lr in the checkpoint is None"),
        (lambda s: s["optimizer"]["groups"][0].update(weight_decay="x"), "the optimizer's weight_decay"),
        (lambda s: s["optimizer"]["groups"][0].pop("eps"), "lacks 'eps'"),
        (lambda s: s["optimizer"]["state"]["0.weight"].pop("exp_avg"), "exp_avg"),
        (lambda s: s["optimizer"]["state"].update({"nobody": {}}), "nobody"),
        (lambda s: buffer(s).update(seen=3), "buffer"),
        (lambda s: buffer(s)["labels"].__setitem__(0, -5), "labels"),
        (lambda s: buffer(s)["labels"].fill_(4), "labels in the checkpoint has entries outside 0 to 3"),
        (lambda s: buffer(s).update(logits=buffer(s)["logits"][:, :3]), "logits in the checkpoint are of 3 classes"),
        (lambda s: buffer(s).update(logits=buffer(s)["labels"][:, None]), "not floating point"),
        (lambda s: buffer(s).update(inputs=torch.tensor(0)), "does not hold 20 samples"),
        (lambda s: buffer(s).pop("logits"), "lacks 'logits'"),
        (lambda s: buffer(s).pop("inputs"), "lacks 'inputs'"),
        (lambda s: s["learner"].pop("classes"), "classes in the checkpoint are not well formed"),
        (lambda s: s.update(learner=[]), "classes in the checkpoint are not well formed"),
        (lambda s: s["learner"]["position"].update(cursor=10**6), "cursor"),
        (lambda s: s["learner"]["position"].update(order=torch.ones(3)), "order"),
        (lambda s: s["learner"]["position"].update(task=1), "position"),
        (lambda s: s["learner"]["position"].update(epoch=5), "epoch"),
        (lambda s: s["learner"]["generators"].update(order=torch.zeros(3, dtype=torch.uint8)), "does not fit"),
        (lambda s: s["learner"]["sparsifier"]["ddr"].update(removed=7), "removed"),
        (lambda s: s["learner"]["sparsifier"].update(unknown=1), "not taken as it is"),
        (lambda s: s["settings"].update(epochs="2"), "epochs"),
        (lambda s: s["settings"]["made_from"]["model"].update(kind="Popen"), "unknown model; allowed: ResNet"),
        (lambda s: arguments(s, "model").update(width=1 << 40), "width"),
        (lambda s: arguments(s, "method").update(buffer_size=21), "does not hold|not taken"),
        (lambda s: arguments(s, "method").update(alpha="x"), "the method's alpha in the checkpoint is 'x', of a wrong"),
        (lambda s: arguments(s, "method").update(single_head=[1]), "single_head"),
        (lambda s: arguments(s, "sparsifier").update(prunable=["conv", 3]), "prunable"),
        (lambda s: arguments(s, "sparsifier").update(sparsity=None), "sparsity"),
        (lambda s: arguments(s, "sparsifier").update(sparsity=2.5), "sparsifier in the checkpoint does not fit: spars"),
        (lambda s: arguments(s, "method").update(buffer_size=0), "the method in the checkpoint does not fit: buffer"),
        (lambda s: s["settings"].update(batch_size=0), "batch_size in the checkpoint is 0"),
        (lambda s: s["settings"].update(budget={"steps": -3}), "the budget in the checkpoint is not allowed: steps -3"),
        (lambda s: s["learner"]["transform"]["std"].__setitem__(0, -1.0), "in the checkpoint does not fit: mean and"),
    ],
)
def test_a_state_that_was_bent_is_refused_by_name(
    tmp_path: Path, state: tree.State, change: Callable[[tree.State], Any], said: str
) -> None:
    bent = copy.deepcopy(state)
    change(bent)
    Store(tmp_path).save(1, bent)
    with pytest.raises(CheckpointError, match=said):
        sparcl.Learner.load(tmp_path)


@pytest.mark.parametrize("options", [{"momentum": None}, {"lr": -1.0}, {"nesterov": True}, {"maximize": 1}])
def test_options_are_checked_also_of_an_optimizer_without_state(tmp_path: Path, options: dict[str, Any]) -> None:
    learner = sparcl.Learner(ConvNet(4, 2, 8), **SETTINGS)
    learner.save(tmp_path / "good")
    bent = learner.checkpoint_state()
    bent["optimizer"]["groups"][0].update(options)
    Store(tmp_path).save(1, bent)
    assert sparcl.Learner.load(tmp_path / "good").steps == 0
    with pytest.raises(CheckpointError, match="the optimizer's"):
        sparcl.Learner.load(tmp_path)


def test_a_buffer_of_other_inputs_than_the_tasks_is_refused(tmp_path: Path, state: tree.State) -> None:
    bent = copy.deepcopy(state)
    buffer(bent)["inputs"] = buffer(bent)["inputs"].int()
    Store(tmp_path).save(1, bent)
    learner = sparcl.Learner.load(tmp_path)
    with pytest.raises(DataError, match="int32 was learned"):
        learner.learn(stream()[learner.learned])


def test_the_state_itself_is_taken(tmp_path: Path, state: tree.State) -> None:
    Store(tmp_path).save(1, state)
    learner = sparcl.Learner.load(tmp_path, backend="reference")
    assert tree.difference(learner.checkpoint_state(), state) is None
    assert json.loads(json.dumps(saving.recipes(learner.model, learner.method, learner.sparsifier))) == learner.recipes


@pytest.mark.parametrize("event", [*SAFE, "epoch.end last"])
@pytest.mark.parametrize("method", [lambda: DERpp(20), lambda: ICaRL(8)], ids=["derpp", "icarl"])
def test_a_state_saved_at_any_event_between_two_steps_goes_on_to_the_same_bits(
    tmp_path: Path, event: str, method: Callable[[], Method]
) -> None:
    def fresh() -> sparcl.Learner:
        return sparcl.Learner(ConvNet(4, 2, 8), method(), sparcl.SparCL(0.75), backend="reference", **SETTINGS)

    torch.manual_seed(0)
    whole, times = fresh(), []

    def save(name: str, figures: dict[str, Any]) -> None:
        if name == event.split()[0] and figures["task"] == 1:
            times.append(name)
            if len(times) == 1 + ("last" in event):
                whole.save(tmp_path)

    whole.observers.append(save)
    for task in stream():
        whole.learn(task)
    again = sparcl.Learner.load(tmp_path, backend="reference")
    for task in stream()[again.learned :]:
        again.learn(task)
    assert tree.difference(whole.checkpoint_state(), again.checkpoint_state()) is None


@pytest.mark.parametrize("event", ["step.begin", "importance.end", "tdm.update", "tdm.expand"])
def test_a_state_asked_for_in_the_middle_of_a_step_is_refused(
    tmp_path: Path, event: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparcl.sparsity.tdm.STEPS_APART", 1)  # tasks are short here
    learner = made("reference")
    first, second = stream()
    learner.learn(first)
    learner.observers.append(lambda name, _: learner.save(tmp_path) if name == event else None)
    with pytest.raises(CheckpointError, match=r"save at task.begin, .*step.end"):
        learner.learn(second)
    learner.observers.clear()
    learner.save(tmp_path)  # what was learned until then is not lost


@NATIVE
def test_parameter_groups_told_apart_before_conversion_are_the_same_on_either_backend(tmp_path: Path) -> None:
    saved = []
    for backend in ("native", "reference"):
        torch.manual_seed(0)
        model = ConvNet(4, 2, 8)
        flat = {id(p) for p in model.parameters() if p.dim() <= 1}

        def groups(parameters: list[Any], flat: set[int] = flat) -> torch.optim.Optimizer:
            decayed, free = ([p for p in parameters if (id(p) in flat) is is_flat] for is_flat in (False, True))
            return torch.optim.AdamW([{"params": decayed}, {"params": free, "weight_decay": 0.0}], lr=0.01)

        learner = sparcl.Learner(model, DERpp(20), sparcl.SparCL(0.75), optimizer=groups, backend=backend, **SETTINGS)
        assert [len(group["params"]) for group in learner.optimizer.param_groups] == [5, 9]
        if backend == "native":
            learner.learn(stream()[0])
            learner.save(tmp_path / "native")
        else:
            learner.restore(Store(tmp_path / "native").load().state)
        saved.append(learner.save(tmp_path / backend / "again"))
    assert same_files(*saved)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_restore_that_was_refused_late_is_not_gone_on_from(tmp_path: Path, backend: str) -> None:
    learner, other = made(backend), made(backend)
    learner.learn(stream()[0])
    whole = learner.checkpoint_state()
    bent = copy.deepcopy(whole)
    buffer(bent)["seen"] = 3
    with pytest.raises(CheckpointError):
        other.restore(bent)
    with pytest.raises(ConfigError, match="restored in part"):
        other.learn(stream()[0])
    with pytest.raises(ConfigError, match="restored in part"):
        other.observe(torch.zeros(8, 2, 6, 6), [0, 1] * 4)
    with pytest.raises(CheckpointError, match="restored in part"):
        other.save(tmp_path)
    other.restore(whole)
    for each in (learner, other):
        each.learn(stream()[1])
    assert tree.difference(learner.checkpoint_state(), other.checkpoint_state()) is None


def test_a_restore_of_anothers_state_takes_nothing_of_it() -> None:
    learner, other = made("reference", seed=1), made("reference", seed=2)
    learner.learn(stream()[0])
    before = other.checkpoint_state()
    with pytest.raises(CheckpointError, match="seed is 2 here, but 1"):
        other.restore(learner.checkpoint_state())
    assert tree.difference(other.checkpoint_state(), before) is None
    other.learn(stream()[0])
