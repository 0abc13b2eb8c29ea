import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from sparcl import streams
from sparcl.errors import ConfigError
from sparcl.streams.augment import CIFAR_MEAN, CIFAR_STD, Normalize, Transform, random_crop_flip


def crop_flip_one_by_one(inputs, padding, flip, generator):
    """Obviously right: the same draws, one image after the other."""
    n, _, h, w = inputs.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator)
    mirrored = torch.randint(0, 2, (n, 1), generator=generator, dtype=torch.bool) if flip else torch.zeros(n, 1)
    out = torch.empty_like(inputs)
    for i in range(n):
        y, x = int(offsets[0, i]), int(offsets[1, i])
        crop = F.pad(inputs[i], (padding,) * 4)[:, y : y + h, x : x + w]
        out[i] = crop.flip(2) if mirrored[i] else crop
    return out


@given(
    shape=st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    padding=st.integers(0, 4),
    flip=st.booleans(),
    floating=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_crop_and_flip_match_one_image_at_a_time(shape, padding, flip, floating, seed):
    inputs = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    inputs = inputs.float() if floating else inputs
    ours, theirs = (torch.Generator().manual_seed(seed) for _ in range(2))
    out = random_crop_flip(inputs, padding, flip, ours)
    assert torch.equal(out, crop_flip_one_by_one(inputs, padding, flip, theirs))
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_every_offset_and_both_directions_occur():
    n, padding = 2000, 2
    inputs = torch.zeros(n, 1, 3, 3, dtype=torch.uint8)
    inputs[:, 0, 1, 1], inputs[:, 0, 1, 2] = 1, 2  # the second pixel lies right of the first, unless mirrored
    out = random_crop_flip(inputs, padding, True, torch.Generator().manual_seed(0))
    whole = (out.flatten(1).sum(1) == 3).nonzero().flatten()
    places = {tuple((out[i, 0] == 1).nonzero()[0].tolist()) for i in whole.tolist()}
    assert places == {(y, x) for y in range(3) for x in range(3)}
    mirrored = sum(int((out[i, 0] == 2).nonzero()[0, 1] < (out[i, 0] == 1).nonzero()[0, 1]) for i in whole.tolist())
    assert 0.42 < mirrored / len(whole) < 0.58


def test_padding_is_black_before_normalisation():
    normalize = Normalize(CIFAR_MEAN, CIFAR_STD)
    white = torch.full((64, 3, 8, 8), 255, dtype=torch.uint8)
    out = Transform(normalize, crop_padding=4).train(white, torch.Generator().manual_seed(1))
    black, light = (normalize(torch.full((1, 3, 1, 1), v, dtype=torch.uint8)) for v in (0, 255))
    assert bool(((out == black) | (out == light)).all())
    assert bool((out == black).any())


def test_normalisation_scales_bytes_but_not_floats():
    levels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CIFAR_MEAN, CIFAR_STD))
    expected = (levels.float() / 255 - mean) / std
    normalize = Normalize(CIFAR_MEAN, CIFAR_STD)
    torch.testing.assert_close(normalize(levels), expected)
    torch.testing.assert_close(normalize(levels.float() / 255), expected)


def test_plain_transform_leaves_arrays_of_any_shape_as_they_are():
    inputs = torch.randn(4, 7)
    before = inputs.clone()
    out = Transform().train(inputs, torch.Generator())
    assert torch.equal(out, before)
    out.zero_()
    assert torch.equal(inputs, before)  # a copy: the stored samples never change


def test_test_transform_draws_nothing_and_training_obeys_the_generator():
    transform = Transform(Normalize(), crop_padding=4, flip=True)
    inputs = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(transform.test(inputs), inputs.float().mul(1 / 255))
    first, same, other = (transform.train(inputs, torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        *[((), ()), ((0.5,), (0.5, 0.5)), ((0.5,), (0.0,)), ((NAN,), (0.5,)), ((0.5,), (INFINITE,))],
        *[("grey", 1.0), (0.5, NAN), (0.5, None)],
    ],
)
def test_impossible_statistics_are_refused(mean, std):
    with pytest.raises(ConfigError, match="one finite value per channel, std above 0"):
        Normalize(mean, std)


@pytest.mark.parametrize("kind", [list, np.asarray, torch.tensor, lambda values: values[0]])
def test_statistics_are_lists_arrays_or_one_number(kind):
    normalize = Normalize(kind([0.5]), kind([2.0]))
    assert (normalize.mean, normalize.std) == ((0.5,), (2.0,))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"crop_padding": -1}, "crop padding -1 is not allowed; use 0"),
        ({"crop_padding": 1.5}, "crop padding 1.5 is not allowed"),
        ({"flip": "yes"}, "flip 'yes' is not allowed; use True or False"),
        ({"augment": 5}, "augment 5 is not allowed; use a function"),
        ({"normalize": (0.5, 0.5)}, "normalize .* is not allowed; use a function"),
        ({"normalize": Normalize}, "normalize .* is not allowed; use a function"),
    ],
)
def test_a_transform_of_other_values_is_refused(options, told):
    with pytest.raises(ConfigError, match=told):
        Transform(**options)


def test_numpys_numbers_make_a_transform_that_can_be_saved():
    settings = Transform(crop_padding=np.int64(2), flip=np.bool_(True)).settings()
    assert [type(settings[key]) for key in ("crop_padding", "flip")] == [int, bool]


@pytest.mark.parametrize("how", [5, 0.5, [5], object()])
def test_an_augmentation_that_is_none_is_one_line(how):
    with pytest.raises(ConfigError, match="augmentation"):
        Transform().augmented(how)


@pytest.mark.parametrize("transform", [Transform, lambda batch: batch, "flip"])
def test_what_is_no_transform_is_refused(transform):
    x, y = np.zeros((4, 1, 4, 4), np.uint8), np.arange(4) % 2
    with pytest.raises(ConfigError, match=r"has .* for a transform: use Transform"):
        streams.from_arrays(x, y, transform=transform)
    with pytest.raises(ConfigError, match=r"has .* for a transform: use Transform"):
        streams.make_task(x, y, transform=transform)


@pytest.mark.parametrize(
    ("transform", "shape", "message"),
    [
        (
            Transform(crop_padding=2),
            (3, 4),
            r"crop and flip are for images \[C, H, W\], not for samples of shape \[4\]",
        ),
        (Transform(flip=True), (3, 4, 4), "crop and flip are for images"),
        (Transform(Normalize((0.5,) * 3, (1.0,) * 3)), (2, 1, 8, 8), "means of 3 channels but samples of shape"),
        (Transform(Normalize((0.5,) * 3, (1.0,) * 3)), (3,), "means of 3 channels but samples of shape"),
    ],
)
def test_samples_that_a_transform_does_not_fit_are_refused_in_one_line(transform, shape, message):
    with pytest.raises(ConfigError, match=message):
        transform.train(torch.zeros(shape), torch.Generator())


def test_channels_that_come_last_are_named_with_the_remedy():
    normalize = Normalize((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match=r"means of 3 channels .*\.permute\(0, 3, 1, 2\)"):
        normalize(torch.zeros(2, 32, 32, 3))
    with pytest.raises(ConfigError, match=r"one mean for all is needed, or one for each$"):
        normalize(torch.zeros(2, 1, 32, 32))


def shift(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return batch.add_(torch.randint(0, 9, (1,), generator=generator, dtype=torch.uint8))


def test_the_augmentation_of_a_stream_is_named_anew():
    stream = digits = streams.seq_digits(limit_per_class=5)
    assert [t.transform.crop_padding for t in stream.augmented("crop+flip")] == [4] * 5
    assert {(t.transform.crop_padding, t.transform.flip) for t in stream.augmented("flip")} == {(0, True)}
    flipped = Transform(Normalize((0.5,), (2.0,)), crop_padding=2, flip=True)
    assert flipped.augmented("crop") == Transform(flipped.normalize, crop_padding=2)
    assert flipped.augmented("none") == Transform(flipped.normalize)
    assert flipped.augmented(shift) == Transform(flipped.normalize, augment=shift)
    assert flipped.augmented(["flip", shift]) == Transform(flipped.normalize, flip=True, augment=shift)
    assert stream.augmented("flip").fingerprint == digits.fingerprint


def test_ones_own_is_drawn_from_the_generator_and_leaves_the_data_alone():
    x = torch.zeros(4, 1, 3, 3, dtype=torch.uint8)
    stream = streams.from_arrays(x, torch.arange(4), x, torch.arange(4), classes_per_task=4, augment=shift)
    transform, stored = stream[0].transform, stream[0].train.inputs
    first, again, other = (transform.train(stored, torch.Generator().manual_seed(s)) * 255 for s in (0, 0, 1))
    drawn = float(torch.randint(0, 9, (1,), generator=torch.Generator().manual_seed(0)))
    assert torch.equal(first, torch.full_like(first, drawn))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert int(stored.sum()) == 0
    assert torch.equal(transform.test(stored), torch.zeros(4, 1, 3, 3))
    settings = transform.settings()
    assert settings == {**Transform().settings(), "augment": "shift"}, "a checkpoint remembers its name alone"
    known = Transform.of(settings)
    assert known.settings() == settings
    assert torch.equal(known.test(stored), transform.test(stored))
    with pytest.raises(ConfigError, match="has the augmentation 'shift' of your own: give it"):
        known.train(stored, torch.Generator())
    with pytest.raises(ConfigError, match="an augmentation is known by its name"):
        Transform.of({**settings, "augment": 3})


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("mirror", "allowed: none, crop, flip"),
        ("none+flip", "each once"),
        ("flip+flip", "each once"),
        ([], "each once"),
        ([shift, shift], "each once"),
        ([3], "a function of a batch"),
        (lambda batch, _: batch.float(), "shape and dtype must stay"),
        (lambda batch: batch, "fails: TypeError"),
    ],
)
def test_what_is_no_augmentation_is_refused(how, says):
    with pytest.raises(ConfigError, match=says):
        streams.seq_digits(limit_per_class=5).augmented(how)
