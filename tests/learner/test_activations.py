"""A Learner whose network keeps its activations in bfloat16: that it does, goes on to the bit, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sparcl import Learner, SparCL, kernels, nn, streams
from sparcl.errors import CheckpointError, ConfigError
from sparcl.methods import DERpp
from sparcl.run import build
from sparcl.run.experiment import Experiment
from sparcl.run.export_device import export_device, export_fresh
from sparcl.streams import Stream

pytestmark = pytest.mark.skipif(not kernels.available(), reason="not compiled")


def stream() -> Stream:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(128) % 4
    images = torch.randint(0, 256, (128, 3, 8, 8), generator=generator).to(torch.uint8)
    images[:, 0, 0] = (60 * labels).view(-1, 1).to(torch.uint8)
    return streams.from_arrays(images, labels, images, labels, classes_per_task=2)


def learner(activations: str = "bfloat16", **settings: Any) -> Learner:
    torch.manual_seed(0)
    network = nn.resnet18(4, width=4, activations=activations)
    usual: dict[str, Any] = {"batch_size": 16, "steps": 12, "lr": 0.05, "backend": "native"}
    return Learner(network, DERpp(buffer_size=40), SparCL(sparsity=0.5), **{**usual, **settings})


def weights(of: Learner) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in of.dense_model().parameters()])


def test_it_learns_nearly_the_same_and_not_quite() -> None:
    found = []
    for activations in nn.ACTIVATIONS:
        made = learner(activations, steps=1)
        start = weights(made)
        made.learn(stream()[0])
        found.append(weights(made) - start)
    apart = float((found[0] - found[1]).norm() / found[0].norm())
    assert 1e-4 < apart < 0.6  # the roundings of a network of 20 layers


def test_what_was_learned_answers_in_float32() -> None:
    made = learner()
    made.learn(stream()[0])
    images = stream()[0].test.inputs[:16]
    plain = nn.resnet18(4, width=4).eval()
    plain.load_state_dict(made.dense_model().state_dict())
    own = made.predict(images).probabilities
    expected = plain(stream()[0].transform.test(images)).softmax(1)
    assert torch.allclose(own, expected, atol=1e-4)


def test_saved_inside_a_task_it_goes_on_to_the_bit(tmp_path: Path) -> None:
    whole = learner()
    for task in stream():
        whole.learn(task)
    parts = learner(checkpoint_dir=tmp_path / "c", checkpoint_every=5)
    parts.learn(stream()[0])

    def stop(event: str, _: dict[str, Any]) -> None:
        if event == "step.end" and parts.steps == 17:
            raise KeyboardInterrupt

    parts.observers.append(stop)
    with pytest.raises(KeyboardInterrupt):
        parts.learn(stream()[1])
    again = Learner.load(tmp_path / "c", backend="native")
    assert isinstance(again.model, nn.ResNet)
    assert again.model.activations == "bfloat16"
    for task in stream().tasks[again.learned :]:
        again.learn(task)
    assert torch.equal(weights(again), weights(whole))


def test_a_checkpoint_is_of_its_activations(tmp_path: Path) -> None:
    for saved, given in (("bfloat16", "float32"), ("float32", "bfloat16")):
        learner(saved).save(tmp_path / saved)
        with pytest.raises(CheckpointError, match="another model"):
            Learner.load(tmp_path / saved, model=nn.resnet18(4, width=4, activations=given))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "reference"}, "are of backend native, not of reference"),
        ({"batch_size": 24}, "multiple of 16 samples, and .* is 24"),
        ({"replay_batch_size": 8}, "multiple of 16 samples, and .* is 8"),
        ({"micro_batch": 8}, "do not go with micro-batches"),
        ({"freeze": "stem", "latents": "int8"}, "do not go with latents"),
    ],
)
def test_what_would_make_it_vain_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        learner(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_activations_of_a_network_of_ones_own_are_another_matter(backend: str) -> None:
    network = nn.ConvNet(4, channels=3, width=4)
    network.activations = {}
    Learner(network, DERpp(buffer_size=40), SparCL(sparsity=0.5), batch_size=24, backend=backend).learn(stream()[0])


def test_a_device_has_no_such_activations(tmp_path: Path) -> None:
    made = learner()
    with pytest.raises(ConfigError, match="a device keeps activations as float32 alone"):
        export_device(
            made, tmp_path / "m", transform=stream()[0].transform, input_shape=(3, 8, 8), classes=["a", "b", "c", "d"]
        )
    config = tmp_path / "fresh.toml"
    config.write_text('stream = "seq-cifar10"\nactivations = "bfloat16"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="a device keeps activations as float32 alone"):
        export_fresh(config, tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("activations", ["float16", "bf16", "", 16])
def test_other_activations_are_unknown(activations: Any) -> None:
    with pytest.raises(ConfigError, match="activations"):
        nn.resnet18(4, activations=activations)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activations": "float16"}, "unknown activations .*float32, bfloat16"),
        ({"max_memory": "400MB"}, "and max memory do not go together"),
        ({"micro_batch": 16}, "and micro batch do not go together"),
        ({"freeze": "stem", "latents": "int8"}, "and latents do not go together"),
        ({"backend": "reference"}, "of backend native, on the CPU"),
        ({"device": "cuda"}, "of backend native, on the CPU"),
    ],
)
def test_an_experiment_refuses_the_same(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Experiment.from_dict({"stream": "seq-cifar10", "activations": "bfloat16", **settings})


def test_an_experiment_builds_it_and_says_so_in_its_file() -> None:
    experiment = Experiment.from_dict({"stream": "seq-cifar10", "width": 4, "activations": "bfloat16"}).resolve()
    assert 'activations = "bfloat16"' in experiment.to_toml()
    network = build.model(experiment, stream())
    assert isinstance(network, nn.ResNet)
    assert network.activations == "bfloat16"
    assert "activations" not in Experiment.from_dict({"stream": "seq-cifar10"}).resolve().to_toml()


@pytest.mark.parametrize("model", ["convnet", "mlp"])
def test_another_network_has_none(model: str) -> None:
    with pytest.raises(ConfigError, match="of model resnet18 alone"):
        nn.build(model, 4, (3, 8, 8), activations="bfloat16")
