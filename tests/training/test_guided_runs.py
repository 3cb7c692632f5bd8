"""Runs of the guided distillation: a trained network, stages on disk, pipelines of a scale, refusals."""

import json
from dataclasses import replace

import pytest
import torch

from halfstep.batch import Batch, Cond
from halfstep.data import Dataset
from halfstep.diffusion.analytic import mixture_teacher
from halfstep.diffusion.denoiser import Denoiser, level_of
from halfstep.diffusion.guidance import Guided
from halfstep.diffusion.loss_weighting import snr_plus_one, truncated_snr
from halfstep.diffusion.prediction import Eps, V
from halfstep.diffusion.samplers import sample
from halfstep.diffusion.schedules import BetaTable, Cosine
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.methods import DenoiserOnly, GuidedDistillation, METHODS, Progressive
from halfstep.methods.diffusion.guided import AnyScale, at_any_scale, GuidedOptions, MatchGuided
from halfstep.methods.diffusion.progressive import Halve
from halfstep.models import build, recipe
from halfstep.pipeline import Pipeline
from halfstep.rng import Draw, sample_noise
from halfstep.training.api import stages_of
from tests.support.denoisers import seeded
from tests.support.guided import DATA, fit, labelled_points, MLP, NULL, rms, run, SMALL, teacher_of
from tests.support.networks import TINY

# --- training -----------------------------------------------------------------------------------------


SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0)


@pytest.fixture(scope="module")
def trained():
    """The exact guided mixture, and a small network after 1000 updates of the first stage."""
    torch.manual_seed(0)
    teacher = mixture_teacher(Cosine())
    config = {"dim": 2, "width": 64, "depth": 2, "num_classes": 3, "guidance_embed_dim": 32}
    student = Denoiser(build("mlp", config), Cosine(), V())
    fit(student, MatchGuided(teacher, NULL, (1.0, 5.0)), updates=1000, rate=8e-3, rng=seeded())
    return teacher, student


@torch.no_grad()
def test_a_trained_network_is_the_guided_teacher_at_every_scale(trained):
    """Root mean square of the x0 error below 0.05 at scales 1 to 5, where x0 itself is up to 1.8."""
    teacher, student = trained
    x, label = DATA.labelled(3000, seeded(9), torch.float32)
    t = torch.rand(3000, generator=seeded(8), dtype=torch.float64)
    x_t = level_of(Cosine(), t, x).mix(x, torch.randn(3000, 2, generator=seeded(7)))
    for scale in SCALES:
        got = student(x_t, t, Cond(label, guidance_scale=torch.full((3000,), scale))).x0
        wanted = Guided(teacher, scale, NULL)(x_t, t, Cond(label)).x0
        assert rms(got, wanted) < 0.05, scale
    # and the wrong scale is not as good
    wrong = student(x_t, t, Cond(label, guidance_scale=torch.full((3000,), 3.0))).x0
    assert rms(wrong, wanted) > 0.2


def test_the_error_by_scale_that_the_log_has(trained):
    """The same by the objective itself, at five scales; 0 for the exact student."""
    teacher, student = trained
    match, batch = MatchGuided(teacher, NULL, (1.0, 5.0)), Batch(*labelled_points(2000))
    by_scale = match.measure(student, batch, Draw.all(seeded(3), 2000))["x0_error_by_scale"]
    assert list(by_scale) == ["1", "2", "3", "4", "5"] and 0.005 < max(by_scale.values()) < 0.05

    def exact(x, t, cond):
        return Guided(teacher, cond.guidance_scale, NULL)(x, t, Cond(cond.label))

    by_scale = match.measure(exact, batch, Draw.all(seeded(3), 2000))["x0_error_by_scale"]
    assert max(by_scale.values()) < 1e-5
    by_scale = match.measure(lambda x, t, cond: teacher(x, t, Cond(cond.label)), batch,
                          Draw.all(seeded(3), 2000))["x0_error_by_scale"]  # fmt: skip
    # The plain teacher is wrong in proportion to w.
    assert by_scale["1"] < 1e-6 and by_scale["5"] == pytest.approx(4 * by_scale["2"], rel=1e-4)


@pytest.mark.slow
def test_one_step_of_a_trained_student_is_the_walk_of_the_guided_teacher(trained):
    """Both stages trained, 8 steps halved to 1: samples of one call against those of 8 x 2."""
    teacher, student = trained
    student, times, rng = student.trainable_copy(), uniform(8), seeded(1)
    while len(times) > 2:
        halve = AnyScale(Halve(student.freeze(), times), (1.0, 5.0))
        student, times = student.trainable_copy(), times[::2]
        fit(student, halve, updates=300, rate=2e-3, rng=rng)
    noise, label = torch.randn(2000, 2, generator=seeded(2)), torch.arange(2000) % 3
    for scale in (1.0, 2.0, 3.0, 4.0, 5.0):
        cond = Cond(label, guidance_scale=torch.full((2000,), scale))
        wanted = sample(Guided(teacher, scale, NULL), noise, uniform(8), cond=Cond(label))
        assert rms(sample(student, noise, times, cond=cond), wanted) < 0.07, scale


def test_the_stages():
    teacher = teacher_of().denoiser
    stages = list(SMALL.stages(DenoiserOnly(teacher, 3)))
    assert [stage.name for stage in stages] == ["guided", "0004-steps", "0002-steps"]
    assert [stage.updates for stage in stages] == [5, 4, 8]  # the last two halvings doubled
    assert [len(stage.times) for stage in stages] == [0, 5, 3]
    assert {stage.guidance_range for stage in stages} == {(1.0, 4.0)}
    first, second, third = stages
    assert first.objective == MatchGuided(teacher, 3, (1.0, 4.0), truncated_snr, None)
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    assert second.objective.guidance_range == (1.0, 4.0) == third.objective.guidance_range
    assert second.objective.objective.teacher is first.student
    assert third.objective.objective.teacher is second.student
    assert second.objective.objective.times == uniform(8)
    assert all(p.requires_grad for p in third.student.parameters()) and third.student.training
    # From the conditional teacher to the bit, whatever the scale.
    batch = Batch(torch.randn(5, 2), Cond(torch.tensor([0, 1, 2, 1, 0])))
    t = torch.linspace(0.1, 1, 5)
    cond = replace(batch.cond, guidance_scale=torch.linspace(1, 4, 5))
    assert torch.equal(first.student(batch.x0, t, cond).x0, teacher(batch.x0, t, batch.cond).x0)


def test_the_options_reach_the_stages():
    halving = Progressive(start=8, stop=2, updates=(2, 9), grid="logsnr", weighting="snr+1")
    method = replace(SMALL, weighting="snr+1", levels=16, halving=halving)
    stages = list(method.stages(DenoiserOnly(teacher_of().denoiser, 3)))
    assert stages[0].objective.levels == 16 and stages[0].objective.weighting is snr_plus_one
    assert [stage.updates for stage in stages] == [5, 2, 9]
    plain = list(halving.stages(DenoiserOnly(teacher_of().denoiser)))
    assert [stage.times for stage in stages[1:]] == [stage.times for stage in plain]
    times = (0.9, 0.5, 0.2, 0.1, 0.0)
    method = replace(SMALL, halving=Progressive(start=4, stop=2, times=times))
    assert list(method.stages(DenoiserOnly(teacher_of().denoiser, 3)))[1].times == times[::2]
    table = teacher_of()
    table = replace(table, denoiser=Denoiser(table.denoiser.net, BetaTable(levels=40), V()))
    assert next(SMALL.stages(DenoiserOnly(table.denoiser, 3))).objective.levels == 40


def test_the_first_stage_alone():
    method = replace(SMALL, halving=None)
    [stage] = method.stages(DenoiserOnly(teacher_of().denoiser, 3))
    assert stage.name == "guided" and not stage.times


@pytest.mark.parametrize(
    "options, name, config",
    [
        ({"student": {"width": "8", "depth": "2"}}, "mlp", {**MLP, "width": 8, "depth": 2}),
        ({"student": {"width": 8}}, "mlp", {**MLP, "width": 8}),
        ({"student_net": "mlp"}, "mlp", {"dim": 2, "width": 64, "num_classes": None}),
        (
            {"student_net": "tests.diffusion.test_guidance:own_network", "student": {"wide": "2"}},
            "tests.diffusion.test_guidance:own_network",
            {"wide": 2},
        ),
    ],
)
def test_a_smaller_student_of_its_own(options, name, config):
    teacher = teacher_of().denoiser.double()
    made = []
    for state in (1, 2):
        torch.manual_seed(state)
        made.append(next(replace(SMALL, **options).stages(DenoiserOnly(teacher, 3))).student)
    build_recipe = recipe(made[0].net)
    assert (
        build_recipe[0] == name
        and config.items() <= build_recipe[1].items()
        and build_recipe[1]["guidance_embed_dim"] == 8
    )
    first, second = (student.state_dict() for student in made)
    assert all(torch.equal(first[key], second[key]) for key in first)  # whatever the global state
    assert all(value.dtype == torch.float64 for value in first.values())
    assert all(p.requires_grad for p in made[0].parameters())


def test_a_run_from_teacher_to_two_steps(tmp_path):
    teacher = teacher_of()
    student = run(tmp_path / "r", teacher=teacher)
    assert student.guidance_range == (1.0, 4.0) and [len(times) for times in student.times] == [3]
    assert teacher.guidance_range is None
    first = Pipeline.load(tmp_path / "r" / "stages" / "guided")
    assert (
        first.guidance_range == (1.0, 4.0)
        and first.times == ()
        and first.class_names == ("a", "b", "c")
    )
    again = run(tmp_path / "r", teacher=teacher)
    x = [made.sample(5, guidance_scale=2.5) for made in (student, again)]
    assert torch.equal(*x)
    last = Pipeline.load(tmp_path / "r" / "stages" / "0002-steps")
    assert torch.equal(last.sample(5, guidance_scale=2.5), x[0])
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    assert record["command"] == "distill guided" and record["options"]["guidance_range"] == [
        1.0,
        4.0,
    ]
    lines = (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    errors = [line.get("x0_error_by_scale") for line in lines if "loss" in line]
    assert [None if by_scale is None else list(by_scale) for by_scale in errors[:3]] == [
        ["1", "1.75", "2.5", "3.25", "4"],
        ["1", "1.75", "2.5", "3.25", "4"],
        ["1", "1.75", "2.5", "3.25", "4"],
    ]
    assert errors[3:] and not any(errors[3:])
    assert {line["stage"] for line in lines} == {"guided", "0004-steps", "0002-steps"}


def test_a_run_can_be_halved_further(tmp_path):
    teacher = teacher_of()
    run(tmp_path / "r", teacher=teacher)
    further = replace(SMALL, halving=replace(SMALL.halving, stop=1))
    student = run(tmp_path / "r", teacher=teacher, method=further, extend=True)
    assert len(student.times[0]) == 2 and student.guidance_range == (1.0, 4.0)


def test_a_student_that_takes_its_scale_is_halved_by_the_plain_method_too(tmp_path):
    """Whatever distils it, its scale is drawn from the range that it knows."""
    first = run(tmp_path / "a", method=replace(SMALL, halving=None))
    halving = Progressive(start=4, stop=2, updates=(3,))
    [stage] = stages_of(halving, first, first.denoiser)
    assert stage == at_any_scale(replace(stage, objective=stage.objective.objective), (1.0, 4.0))
    student = run(tmp_path / "b", method=halving, teacher=first)
    assert student.guidance_range == (1.0, 4.0) and len(student.times[0]) == 3
    with pytest.raises(ConfigError, match="as an input already"):
        run(tmp_path / "c", teacher=first)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("name", ["unet", "uvit", "dit"])
def test_networks_of_images_go_the_same_way(name, tmp_path):
    teacher = teacher_of(name, TINY[name] | {"num_classes": 4}, (3, 8, 8))
    images = torch.rand(12, 3, 8, 8, generator=seeded()) * 2 - 1
    data = Dataset(images, torch.arange(12) % 3, names=("a", "b", "c"))
    method = replace(SMALL, updates=2, halving=Progressive(start=2, stop=1, updates=(2,)))
    student = run(tmp_path / "r", method=method, teacher=teacher, data=data)
    assert recipe(student.denoiser.net) == (
        name,
        {**recipe(teacher.denoiser.net)[1], "guidance_embed_dim": 8},
    )
    loaded = Pipeline.load(tmp_path / "r" / "stages" / "0001-steps")
    assert loaded.sample(3, guidance_scale=3.0).shape == (3, 3, 8, 8)
    assert torch.equal(loaded.sample(3, guidance_scale=3.0), student.sample(3, guidance_scale=3.0))
    assert not torch.equal(
        loaded.sample(3, guidance_scale=3.0), loaded.sample(3, guidance_scale=1.0)
    )


# --- the pipeline -------------------------------------------------------------------------------------


def guided_pipeline(guidance_range=(1.0, 4.0)):
    made = teacher_of(config={**MLP, "guidance_embed_dim": 8})
    return replace(made, guidance_range=guidance_range)


def test_the_scale_is_an_input_and_every_step_one_call():
    made, inputs = guided_pipeline(), []
    made.denoiser.net.register_forward_pre_hook(lambda net, args: inputs.append(args))
    x = made.sample(5, steps=3, guidance_scale=2.5, seed=4, batch=3)
    assert [len(x) for x, _, _ in inputs] == [3, 3, 3, 2, 2, 2]
    assert all(cond.guidance_scale.tolist() == [2.5] * len(x) for x, _, cond in inputs)
    assert torch.cat([cond.label for _, _, cond in inputs[::3]]).tolist() == [0, 1, 2, 0, 1]
    cond = Cond(torch.arange(5) % 3, guidance_scale=torch.full((5,), 2.5))
    wanted = sample(made.denoiser, sample_noise(4, range(5), (2,)), uniform(3), cond=cond)
    torch.testing.assert_close(x, wanted, rtol=0, atol=1e-6)
    made.sample(1, steps=1)
    assert inputs[-1][2].guidance_scale.tolist() == [1.0]
    made.sample(1, steps=1, guidance_scale=2)
    assert (
        inputs[-1][2].guidance_scale.tolist() == [2.0]
        and inputs[-1][2].guidance_scale.is_floating_point()
    )


@pytest.mark.parametrize("scale, write", [(0.9, "1"), (4.01, "4"), (1.0, "2")])
def test_scales_outside_the_range_are_refused(scale, write):
    made = guided_pipeline((2.0, 4.0) if scale == 1 else (1.0, 4.0))
    message = rf"got {scale:g}: write guidance_scale={write}$"
    with pytest.raises(ConfigError, match=message):
        made.sample(2, steps=1, guidance_scale=scale)
    made.sample(2, steps=1, guidance_scale=float(write))
    made.sample(2, steps=1, guidance_scale=4.0)


def test_a_network_of_scales_without_classes():
    net = build("mlp", {"dim": 2, "width": 16, "depth": 1, "guidance_embed_dim": 8})
    made = Pipeline(Denoiser(net, Cosine(), V()), (2,), guidance_range=(1.0, 4.0))
    assert made.sample(3, steps=2, guidance_scale=2.0).shape == (3, 2)


def test_saved_and_loaded(tmp_path):
    made = guided_pipeline()
    made.save(tmp_path / "g")
    loaded = Pipeline.load(tmp_path / "g")
    assert loaded.guidance_range == (1.0, 4.0) and made.describe() == loaded.describe()
    assert torch.equal(made.sample(3, guidance_scale=2.0), loaded.sample(3, guidance_scale=2.0))


def test_old_pipelines_load_and_are_told_as_they_were(tmp_path):
    made = teacher_of()
    assert (
        "guidance_range" not in made.describe()
        and "guidance_range" not in made.describe()["net"]["config"]
    )
    made.save(tmp_path / "old")
    loaded = Pipeline.load(tmp_path / "old")
    assert loaded.guidance_range is None
    assert torch.equal(made.sample(3, guidance_scale=2.0), loaded.sample(3, guidance_scale=2.0))


# --- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"guidance_range": (5.0, 1.0)},
            "got 5 and 1",
        ),
        ({"guidance_range": (-1.0, 2.0)}, "guidance_range"),
        ({"guidance_range": (1.0, float("inf"))}, "guidance_range"),
        ({"updates": -1}, "updates"),
        ({"levels": -1}, "levels"),
        ({"halving_updates": (3, -1)}, "halving_updates"),
        ({"halving_updates": (1, 2, 3)}, "halving_updates has 3 numbers for 2 students"),
        ({"halving_updates": ()}, "halving_updates has 0 numbers"),
        ({"start": 6, "stop": 4}, "cannot halve from 6 to 4 steps"),
        ({"stop": 0}, "cannot halve from 8 to 0 steps"),
        ({"weighting": "snr"}, "the weight 'snr' vanishes at SNR 0"),
        ({"weighting": "snr", "stop": 8}, "the weight 'snr' vanishes at SNR 0"),
        ({"weighting": "snr-1"}, "there is no weighting 'snr-1'"),
        ({"times": (1.0, 0.5, 0.0)}, "times has 3 entries, which is 2 steps"),
        ({"times": (1.0, 0.5, 0.0), "start": 2}, "halves nothing"),
        ({"guidance_embed_dim": 7}, "got 7: write an even number from 4"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        GuidedOptions(**{"start": 8, "stop": 2, "halving_updates": (4,), **options})


def test_flat_options_are_those_of_both_parts():
    flat = {
        "guidance_range": (1.0, 4.0),
        "updates": 5,
        "guidance_embed_dim": 8,
        "levels": 16,
        "weighting": "snr+1",
    }
    grid = {"start": 8, "stop": 2, "grid": "logsnr", "target_clip": 1.0}
    halving = Progressive(**grid, updates=(2, 9), weighting="snr+1")
    made = GuidedOptions(**flat, **grid, halving_updates=(2, 9), student={"width": "8"}).build()
    assert made == GuidedDistillation(**flat, student={"width": "8"}, halving=halving)
    assert GuidedOptions(**flat, start=8, stop=8).build() == GuidedDistillation(
        **flat, halving=None
    )
    assert GuidedOptions().build() == GuidedDistillation()


def test_teachers_that_cannot_be_guided_leave_no_folder(tmp_path):
    teacher = replace(teacher_of(), null=None)
    with pytest.raises(ConfigError, match="this teacher has none: train it with labels and drop"):
        run(tmp_path / "r", teacher=teacher)
    eps = teacher_of()
    eps = replace(eps, denoiser=Denoiser(eps.denoiser.net, Cosine(), Eps()))
    for made in (teacher_of(), eps):  # before the v teacher is trained
        with pytest.raises(ConfigError, match="no option of the net 'mlp' called 'wide'"):
            run(tmp_path / "r", teacher=made, method=replace(SMALL, student={"wide": "3"}))
        short = replace(SMALL, student={"num_classes": "2"})
        with pytest.raises(ConfigError, match="does not take the teacher's samples"):
            run(tmp_path / "r", teacher=made, method=short)
    assert not (tmp_path / "r").exists()


def test_a_student_for_one_scale(tmp_path):
    """The paper's ablation: both ends of the range the same."""
    student = run(tmp_path / "r", method=replace(SMALL, guidance_range=(3.0, 3.0)))
    assert student.guidance_range == (3.0, 3.0)
    line = json.loads((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()[0])
    assert list(line["x0_error_by_scale"]) == ["3"]
    assert student.sample(2, guidance_scale=3.0).shape == (2, 2)
    with pytest.raises(ConfigError, match="write guidance_scale=3"):
        student.sample(2)
    assert Pipeline.load(tmp_path / "r" / "stages" / "guided").guidance_range == (3.0, 3.0)


def test_methods_by_name():
    assert METHODS["guided"] is GuidedDistillation
