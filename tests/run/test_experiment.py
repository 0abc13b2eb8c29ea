"""An experiment's settings: filled in as published, written and read back, refused in one line."""

import dataclasses

import pytest

from sparcl.errors import ConfigError
from sparcl.run import build
from sparcl.run.experiment import Experiment
from sparcl.run.overriding import overridden
from sparcl.run.toml import read_toml
from sparcl.sparsity import SparCL


def test_published_setting_of_cifar10_is_the_default():
    e = Experiment("seq-cifar10", method="derpp", buffer_size=500).resolve()
    assert (e.model, e.width, e.epochs, e.batch_size, e.lr) == ("resnet18", 64, 50, 32, 0.03)
    assert e.method_options == {"alpha": 0.2, "beta": 0.5}
    assert e.gradient_sparsity == 0.2
    assert e.sample_removal == 0.3


def test_preset_and_explicit_values_override_the_published_ones():
    e = Experiment("seq-cifar10", buffer_size=500, preset="sparcl-script", lr=0.5).resolve()
    assert e.method_options == {"alpha": 0.1, "beta": 0.5}
    assert e.lr == 0.5


def test_zero_is_a_value_not_a_default():
    e = Experiment("seq-digits", gradient_sparsity=0.0, sample_removal=0.0, sparsity=0.0).resolve()
    assert (e.gradient_sparsity, e.sample_removal, e.sparsity) == (0.0, 0.0, 0.0)


def test_resolving_twice_changes_nothing():
    e = Experiment("seq-tinyimg", method="er", buffer_size=500).resolve()
    assert e.resolve() == e


def test_settings_that_a_dense_network_has_no_use_for_are_allowed_at_their_defaults():
    """So that a sweep's block of dense runs can take back what its base or grid says, and old records can be read."""
    takes_back = {
        "pattern": "unstructured",
        "block_size": 4,
        "distribution": "uniform",
        "prunable": (),
        "sparsity": 0.0,
    }
    plain = Experiment("seq-digits", sparsifier="dense").resolve()
    assert Experiment("seq-digits", sparsifier="dense", **takes_back).resolve() == plain


def test_toml_round_trip(tmp_path):
    e = Experiment(
        "folder", data='a "b"\\c\x7f\n', prunable=("layer*.conv1",), method_options={"alpha": 0.25}
    ).resolve()
    path = tmp_path / "config.toml"
    path.write_text(e.to_toml(), encoding="utf-8")
    assert Experiment.from_dict(read_toml(path)) == e


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"stream": "seq-nothing"}, "seq-cifar10"),
        ({"method": "memory"}, "derpp"),
        ({"sparsifier": "magic"}, "sparcl"),
        ({"sparsity": 1.0, "_build": True}, "0 to 0.99"),
        ({"sparsity": -0.1, "_build": True}, "0 to 0.99"),
        ({"buffer_size": 0}, "1 or more"),
        ({"method": "finetune", "buffer_size": 10}, "no buffer"),
        ({"sparsifier": "dense", "sparsity": 0.9}, "dense"),
        ({"sparsifier": "dense", "gradient_sparsity": 0.2}, "SparCL"),
        ({"sparsifier": "dense", "pattern": "block"}, "leave it out, or unstructured"),
        ({"sparsifier": "dense", "block_size": 8}, "leave it out, or 4"),
        ({"sparsifier": "dense", "distribution": "erk"}, "leave it out, or uniform"),
        ({"sparsifier": "dense", "prunable": ("conv*",)}, "leave it out"),
        ({"block_size": 8}, "pattern block"),
        ({"backend": "native", "device": "cuda"}, "CPU"),
        ({"batch_size": 0}, "1 or more"),
        ({"epochs": 0}, "1 or more"),
        ({"lr": 0.0}, "above 0"),
        ({"lr": float("nan")}, "above 0"),
        ({"preset": "none-such", "_build": True}, "sparcl-script"),
        ({"pattern": "diagonal"}, "block"),
        ({"distribution": "none"}, "erk"),
        ({"model": "vgg"}, "resnet18"),
        ({"scenario": "domain-il"}, "class-il"),
        ({"seed": -1}, "0 or more"),
        ({"seed": 2**63}, "9223372036854775807 or less"),
        ({"threads": 1025}, "1024 or less"),
        ({"width": 10**20}, "65536 or less"),
        ({"buffer_size": 10**13}, "or less"),
        ({"epochs": 10**400}, "or less"),
        ({"method_options": {"buffer_size": 50.0}, "_build": True}, "setting of its own"),
        ({"method_options": {"single_head": 1}, "_build": True}, "setting of its own"),
        ({"method": "er", "method_options": {"alpha": 1}, "_build": True}, "it has none"),
        ({"stream": "seq-mnist", "data": "\udcff"}, "UTF-8"),
        ({"stream": "seq-mnist", "data": "a\0b"}, "UTF-8"),
        ({"method_options": {"gamma": 1.0}, "_build": True}, "alpha"),
        ({"method_options": {"alpha": float("nan")}}, "finite"),
        ({"method_options": {"alpha": -float("inf")}}, "finite"),
        ({"method_options": {"alpha": 10**400}}, "finite"),
        ({"method_options": {"alpha": -1.0}, "_build": True}, "0 or more"),
    ],
)
def test_refusals_name_what_is_allowed(settings, says):
    from sparcl.run import build

    settings = {"stream": "seq-digits", **settings}
    builds = settings.pop("_build", False)
    with pytest.raises(ConfigError, match=says) as refusal:  # noqa: PT012
        experiment = Experiment(**settings)
        assert builds, "refused only when its parts are built"
        experiment = experiment.resolve()
        build.method(experiment)
        build.sparsifier(experiment)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "values",
    [
        {"stream": "seq-digits", "epoch": 3},
        {"stream": "seq-digits", "epochs": "three"},
        {"stream": "seq-digits", "epochs": True},
        {"stream": "seq-digits", "prunable": [1]},
        {"stream": "seq-digits", "method_options": {"alpha": "x"}},
        {"method": "er"},
        {"stream": ["seq-digits"]},
    ],
)
def test_wrong_types_and_names_are_refused(values):
    with pytest.raises(ConfigError, match=r"allowed|must be"):
        Experiment.from_dict(values)


@pytest.mark.parametrize(
    ("given", "keeps"),
    [
        ({"seed": 3, "lr": 0.5, "width": 8}, True),
        ({"model": "mlp"}, False),
        ({"width": 16}, False),
        ({"prunable": ["3"]}, False),
        ({"sparsity": 0.5}, False),
    ],
)
def test_a_layer_choice_is_replayed_only_for_what_it_was_timed_for(given, keeps):
    ran = {"stream": "seq-digits", "model": "convnet", "width": 8, "layer_choice": {"6": "dense"}}
    now = overridden(ran, given)
    assert ("layer_choice" in now) == keeps
    assert now.items() >= given.items()


@pytest.mark.parametrize(
    "content", [b"a = ", b"\xff\xfe", b"[" * 5000, b"seed = " + b"1" * 5000, b"stream = 1\nstream = 2"]
)
def test_damaged_toml_is_one_line(tmp_path, content):
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as refusal:
        read_toml(path)
    assert "\n" not in str(refusal.value)


def test_missing_toml_is_named(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        read_toml(tmp_path / "none.toml")


def test_every_setting_is_an_option_of_the_command():
    import inspect

    from sparcl.cli import run

    options = set(inspect.signature(run).parameters)
    missing = {f.name for f in dataclasses.fields(Experiment)} - options
    assert missing == {
        "method_options",
        "sparsifier_options",
        "optimizer_options",
        "layer_choice",
        "pace",
        "fitted",
        "init_sha256",
    }  # --option, --sparsifier-option, --optimizer-option NAME=NUMBER; measured, not given


def test_ranking_reaches_the_parts_that_rank():
    assert Experiment("seq-digits").resolve().ranking == "step"
    for ranking in ("step", "fresh"):
        sparsifier = build.sparsifier(Experiment("seq-digits", ranking=ranking).resolve())
        assert isinstance(sparsifier, SparCL)
        assert sparsifier.tdm.ranking == sparsifier.dgm.ranking == ranking
    with pytest.raises(ConfigError, match=r"unknown ranking 'stale'.*; allowed: step, fresh"):
        Experiment("seq-digits", ranking="stale")
    with pytest.raises(ConfigError, match="ranking is SparCL's alone; sparsifier rigl has none"):
        Experiment("seq-digits", sparsifier="rigl", ranking="step")


@pytest.mark.parametrize("name", ["prunable", "class_order", "augment", "classes_per_task"])
def test_an_empty_list_is_refused_where_a_file_would_lose_it(name):
    with pytest.raises(ConfigError):
        Experiment.from_dict({"stream": "seq-digits", name: []})
