"""Sampling with a pipeline: noise, labels, guidance, steps, progress, and refused arguments."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.samplers import ancestral, sample
from halfstep.diffusion.schedules import BetaTable, Cosine
from halfstep.diffusion.time_grids import trailing, uniform
from halfstep.errors import ConfigError, DataError
from halfstep.models import build
from halfstep.pipeline import Pipeline
from halfstep.rng import sample_noise
from tests.support.pipelines import pipeline
from tests.support.progress import Ledger

# Samples.


class Seen(nn.Module):
    """Remembers what it was shown, and puts out v = 0."""

    def __init__(self):
        super().__init__()
        self.scale, self.seen = nn.Parameter(torch.zeros(())), []

    def forward(self, x, t, cond=None):
        self.seen.append((x.clone(), None if cond is None else cond.label.clone()))
        return self.scale * x


def watched(shape=(3, 4, 6), **more):
    net = Seen()
    return net, Pipeline(Denoiser(net, Cosine(), V()), shape, **more)


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 256])
@pytest.mark.parametrize("first", [0, 2])
def test_the_noise_of_an_image_depends_on_seed_and_number_alone(batch, first):
    net, made = watched()
    made.sample(7 - first, seed=5, steps=1, batch=batch, first=first)
    noise = torch.cat([x for x, _ in net.seen])
    alone = [sample_noise(5, [k], (3, 4, 6)) for k in range(first, 7)]
    assert torch.equal(noise, torch.cat(alone))


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp-2m", "ancestral"])
def test_an_image_is_the_same_in_any_batch(sampler):
    made = pipeline("uvit")
    whole = made.sample(7, seed=11, steps=4, sampler=sampler)
    for batch, first in [(1, 0), (3, 0), (256, 3), (2, 5)]:
        part = made.sample(7 - first, seed=11, steps=4, sampler=sampler, batch=batch, first=first)
        torch.testing.assert_close(part, whole[first:], rtol=0, atol=1e-5)


def test_every_step_of_an_ancestral_walk_draws_its_own_noise():
    made, ids = pipeline("uvit"), range(2, 5)

    def fresh(like, step):
        assert step > 0  # 0 is what the walk starts from
        return sample_noise(9, ids, like.shape[1:], step=step)

    noise, step = sample_noise(9, ids, made.shape), ancestral(fresh, variance=0.3)
    want = sample(made.denoiser, noise, uniform(4), step)
    got = made.sample(3, seed=9, first=2, steps=4, sampler="ancestral", variance=0.3)
    assert torch.equal(got, want)


def test_seeds_and_numbers_differ():
    made = pipeline("mlp")
    a, b = made.sample(4, steps=1), made.sample(4, seed=1, steps=1)
    rows = torch.cat([a, b])
    assert len({tuple(row.tolist()) for row in rows}) == 8


def test_labels_go_to_their_images():
    net, made = watched(class_names=("a", "b", "c"))
    made.sample(5, steps=1, batch=2, first=1)
    assert torch.cat([y for _, y in net.seen]).tolist() == [1, 2, 0, 1, 2]
    net.seen.clear()
    made.sample(3, steps=1, batch=2, labels=[2, 0, 2])
    assert torch.cat([y for _, y in net.seen]).tolist() == [2, 0, 2]


def test_the_null_label_may_be_asked_for_where_there_is_one():
    net, made = watched(class_names=("a", "b"), null=2)
    made.sample(1, steps=1, labels=[2])
    assert net.seen[0][1].tolist() == [2]


@pytest.mark.parametrize(
    "n, labels, message",
    [
        (2, [0], "2 samples need 2 labels from 0 to 1, got 1"),
        (1, [0, 1], "1 samples need 1 labels from 0 to 1, got 2"),
        (1, [2], r"from 0 to 1, got 1: \(2\)"),
        (1, [-1], r"from 0 to 1, got 1: \(-1\)"),
        (0, [1], "0 samples need 0 labels"),
    ],
)
def test_labels_that_cannot_be_are_refused(n, labels, message):
    _, made = watched(class_names=("a", "b"))
    with pytest.raises(ConfigError, match=message):
        made.sample(n, steps=1, labels=labels)


def test_labels_without_classes_are_refused():
    with pytest.raises(ConfigError, match="has no classes: leave labels out"):
        pipeline("mlp").sample(1, steps=1, labels=[0])


def test_guidance_needs_a_null_class():
    made = pipeline("uvit", class_names=("a", "b"))
    with pytest.raises(ConfigError, match="no null class"):
        made.sample(2, steps=1, guidance_scale=2.0)


def test_guidance_moves_away_from_the_null_class():
    """With a linear pull s, guided = null + s (label - null), where both are seen alone."""
    made = pipeline("uvit", class_names=("a", "b"), null=2)
    label, null = made.sample(2, steps=1), made.sample(2, steps=1, labels=[2, 2])
    guided = made.sample(2, steps=1, guidance_scale=3.0)
    torch.testing.assert_close(guided, null + 3 * (label - null), rtol=0, atol=1e-4)
    assert (label - null).abs().max() > 1e-3


@pytest.mark.parametrize("n", [0, 1])
def test_none_and_one(n):
    made = pipeline("uvit", class_names=("a", "b"))
    assert made.sample(n, steps=1).shape == (n, 3, 4, 6)
    assert made.sample(n, steps=1, labels=[0] * n).shape == (n, 3, 4, 6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n": -1}, "n must be at least 0, got -1"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"first": -2}, "first must be at least 0, got -2"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"sampler": "dimm"}, "perhaps you meant 'ddim'"),
    ],
)
def test_what_cannot_be_sampled_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        pipeline("mlp").sample(**{"n": 1, **options})


def test_whole_numbers_of_numpy_are_whole_numbers_and_floats_are_not():
    made = pipeline("mlp")
    assert torch.equal(
        made.sample(np.int64(2), seed=np.uint8(3), batch=np.int32(1), steps=np.int64(2)),
        made.sample(2, seed=3, batch=1, steps=2),
    )
    for wrong in ({"n": 2.0}, {"n": True}, {"n": 1, "steps": "4"}, {"n": 1, "batch": 1.5}):
        with pytest.raises(ConfigError, match="whole number"):
            made.sample(**wrong)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"noise": np.zeros((2, 5))}, "tensor"),
        ({"noise": [[0.0] * 5] * 2}, "tensor"),
        ({"noise": torch.zeros(2, 5, dtype=torch.int64)}, "floats"),
        ({"images": torch.zeros(2, 5), "mask": np.ones((2, 5), bool)}, "tensor"),
        ({"images": torch.zeros(2, 5), "mask": [True]}, "tensor"),
        ({"images": torch.zeros(2, 5).numpy()}, "tensor"),
    ],
)
def test_only_tensors_are_taken_for_tensors(options, message):
    with pytest.raises((ConfigError, DataError), match=message):
        pipeline("mlp").sample(2, **options)


def test_a_network_without_parameters_is_on_the_cpu():
    class Still(nn.Module):
        def forward(self, x, t, cond=None):
            return torch.zeros_like(x)

    made = Pipeline(Denoiser(Still(), Cosine(), V()), (5,))
    assert made.device == torch.device("cpu")
    assert made.sample(2, steps=2).shape == (2, 5) and made.sample(0).shape == (0, 5)
    assert made.encode(torch.zeros(2, 5), steps=1).shape == (2, 5)


@pytest.mark.parametrize("size", [("8", "8"), (2.5, 2.5), (0, 4), (-4, 4), (True, 4)])
def test_another_size_is_of_whole_numbers(size):
    with pytest.raises(ConfigError, match=r"height|width"):
        pipeline().at_size(*size)


def test_a_clip_bounds_images_and_none_does_not():
    wild, clipped = watched()[1], watched(clip=0.4)[1]
    wild.denoiser.net.scale.data.fill_(5.0)
    clipped.denoiser.net.scale.data.fill_(5.0)
    assert wild.sample(5, steps=3).abs().max() > 1
    assert clipped.sample(5, steps=3).abs().max() <= 0.4


def test_progress_is_told_every_step_of_every_batch():
    ledger = Ledger()
    pipeline("mlp").sample(7, steps=3, batch=2, progress=ledger)
    assert ledger.steps == 3 * 4
    images = pipeline("mlp").sample(7, steps=3)
    ledger = Ledger()  # half the walk
    pipeline("mlp").sample(7, steps=4, batch=2, images=images, strength=0.5, progress=ledger)
    assert ledger.steps == 2 * 4
    ledger = Ledger()
    pipeline("mlp").sample(0, steps=3, progress=ledger)
    assert ledger.steps == 0


def test_sampling_leaves_dropout_off_and_the_global_generator_alone():
    made = pipeline("mlp")
    made.denoiser.train()
    before = torch.random.get_rng_state()
    made.sample(2, steps=2, sampler="ancestral")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not made.denoiser.training


# Students.


def test_a_student_takes_its_own_steps_only():
    made = pipeline("mlp", times=(uniform(8), uniform(2), (1.0, 0.7, 0.3, 0.1, 0.0)))
    assert made.grid() == uniform(2) and made.grid(4) == (1.0, 0.7, 0.3, 0.1, 0.0)
    with pytest.raises(ConfigError, match="2 or 4 or 8"):
        made.sample(1, steps=3)


def test_a_teacher_takes_any_number_and_64_by_default():
    made = pipeline("mlp")
    assert made.grid() == uniform(64) and made.grid(3) == uniform(3)
    assert pipeline("mlp", schedule=BetaTable()).grid() == trailing(64)


def test_a_student_keeps_all_but_the_network(tmp_path):
    made = pipeline("uvit", class_names=("a", "b"), null=2, clip=1.0)
    student = replace(made, denoiser=made.denoiser.trainable_copy(), times=(uniform(2),))
    assert student.times == (uniform(2),) and student.class_names == made.class_names
    assert student.clip == 1.0 and student.null == 2
    assert torch.equal(student.sample(2), made.sample(2, steps=2))


@pytest.mark.parametrize("shape", [(), (0,), (-1,), (2.5,), (True,), (1, 0, 8), "12", 3])
def test_a_sample_has_axes_of_one_or_more(shape):
    net = build("mlp", {"dim": 2, "width": 8, "depth": 1})
    with pytest.raises(ConfigError, match="shape"):
        Pipeline(Denoiser(net, Cosine(), V()), shape=shape)


@pytest.mark.parametrize("options", [{"n": True}, {"batch": True}, {"seed": True}, {"first": True}])
def test_a_truth_value_is_no_number(options):
    net = build("mlp", {"dim": 2, "width": 8, "depth": 1})
    pipeline = Pipeline(Denoiser(net, Cosine(), V()), shape=(2,))
    with pytest.raises(ConfigError, match=next(iter(options))):
        pipeline.sample(**{"n": 1, "steps": 1, **options})


def test_the_reference_is_a_teachers_ddim_and_a_students_own_sampler():
    assert pipeline(sampler="dpm-fast").reference_sampler == "ddim"
    assert pipeline(times=(uniform(4),), sampler="stochastic").reference_sampler == "stochastic"
    assert pipeline(times=(uniform(4),)).reference_sampler == "ddim"
