"""Which teachers and students a distillation takes, said before there is a folder."""

from dataclasses import replace

import pytest
import torch

from halfstep.data import Dataset
from halfstep.diffusion.time_grids import grid, uniform
from halfstep.errors import ConfigError
from halfstep.methods import DenoiserOnly, Encoder, Progressive, Reparameterise, Stochastic
from halfstep.training.api import refuse_teacher, stages_of
from tests.support.guided import points, run, SMALL, teacher_of

HALF = Progressive(start=4, stop=2, updates=(2,))


def student(**changes):
    return replace(teacher_of(), times=(uniform(4),), **changes)


def refused(message, method, teacher, tmp_path, **options):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "r", method=method, teacher=teacher, **options)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("method", [SMALL, HALF, Reparameterise(updates=2)])
def test_a_network_of_classes_needs_labels(method, tmp_path):
    message = "the network has 3 classes and the data has no labels: give data of those classes"
    refused(message, method, teacher_of(), tmp_path, data=Dataset(points().values))


@pytest.mark.parametrize("method", [SMALL, Reparameterise(updates=2)])
def test_a_student_is_not_asked_between_its_times(method, tmp_path):
    message = "at every time"
    refused(message, method, student(), tmp_path)
    with pytest.raises(ConfigError, match=message):  # as --dry-run asks
        refuse_teacher(method, student())


@pytest.mark.parametrize(
    "options",
    [{}, {"student": {"width": "8"}}, {"student_net": "mlp", "student": {"num_classes": "4"}}],
)
def test_a_teacher_of_scales_is_not_guided_again(options, tmp_path):
    first = replace(teacher_of(config={**MLP_OF_SCALES}), guidance_range=(1.0, 4.0))
    message = "as an input already"
    refused(message, replace(SMALL, **options), first, tmp_path)


MLP_OF_SCALES = {"dim": 2, "width": 16, "depth": 1, "num_classes": 4, "guidance_embed_dim": 8}


@pytest.mark.parametrize(
    "method",
    [
        Progressive(start=8, stop=2, updates=(2,)),
        Progressive(start=2, stop=1, updates=(2,)),
        Progressive(start=2, stop=1, updates=(2,), times=(1.0, 0.75, 0.5)),
        replace(HALF, grid="logsnr"),
        replace(HALF, times=(1.0, 0.8, 0.5, 0.2, 0.0)),
    ],
)
def test_a_student_is_halved_on_its_own_grid(method, tmp_path):
    message = "sampled on another"
    refused(message, method, student(), tmp_path)


def test_a_student_goes_on_with_its_own_times(tmp_path):
    assert len(run(tmp_path / "a", method=HALF, teacher=student()).times[0]) == 3
    teacher = teacher_of()
    bent = grid("logsnr", 8, teacher.denoiser.schedule)[::2]
    bent_student = replace(teacher, times=(uniform(8), bent))
    refused("a student of 8 or 4 steps", replace(HALF, grid="logsnr"), bent_student, tmp_path)
    near = tuple(t + 1e-9 * (0 < t < 1) for t in bent)
    assert run(tmp_path / "b", method=replace(HALF, times=near), teacher=bent_student).times == (
        near[::2],
    )


def test_students_of_other_walks_stay_refused(tmp_path):
    for method in (Stochastic(start=4, stop=2, updates=(2,)), Encoder(start=4, updates=(2,))):
        wanted = {"sampler": method.sampler, "direction": method.direction}
        refused(
            f"would be for '{method.sampler}' and '{method.direction}'", method, student(), tmp_path
        )
        refused("is a student for sampler", HALF, student(**wanted), tmp_path)


# --- a student of its own network ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dim": "2"}, "this network takes no labels and got some"),
        (
            {"dim": "3", "num_classes": "4"},
            r"does not take the teacher's samples, \[2\] of 3 classes",
        ),
        ({"dim": "2", "num_classes": "2"}, r"\(index out of range.*: give it all of its options"),
        ({"dim": "2", "num_classes": "4", "out_dim": "4"}, "give it all of its options in student"),
        (
            {"dim": "2", "num_classes": "4", "out_dim": "1"},
            r"answers in the shape \[\d+, 1\] instead of \[\d+, 2\]",
        ),
    ],
)
def test_a_network_that_does_not_fit_leaves_no_folder(options, message, tmp_path):
    refused(message, replace(SMALL, student_net="mlp", student=options), teacher_of(), tmp_path)


def test_trying_it_changes_nothing(tmp_path):
    method, teacher = replace(SMALL, student={"width": "8"}), teacher_of()
    wanted = next(method.stages(DenoiserOnly(teacher.denoiser, 3))).student
    torch.manual_seed(3)
    state = torch.get_rng_state()
    stages = stages_of(method, teacher, teacher.denoiser)
    first = next(stages)
    assert first.student.training and first.guidance_range == (1.0, 4.0)
    assert torch.equal(torch.get_rng_state(), state) and not first.student.net._forward_hooks
    pairs = zip(first.student.state_dict().values(), wanted.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert [stage.name for stage in stages] == ["0004-steps", "0002-steps"]
