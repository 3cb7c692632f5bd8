"""Programs of torch.export: a step of the student, for every batch, dtype and device."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.export.passes import move_to_device_pass

from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import Eps, V
from halfstep.diffusion.schedules import Cosine, RectifiedFlow
from halfstep.errors import ConfigError
from halfstep.hub.bundled import bundled_students, bundled_teacher
from halfstep.pipeline import Pipeline
from halfstep.pipeline.any_batch import any_batch
from halfstep.pipeline.torch_export import export_program, in_dtype, rounded_student, run_program
from halfstep.rng import sample_noise
from tests.support.programs import exported_student, inputs, largest_difference
from tests.support.runs import teacher


def test_a_program_draws_what_the_student_draws():
    n = 5
    pipeline = bundled_students()[1]
    program = export_program(pipeline)
    assert program.inputs == ("x", "step", "label", "guidance_scale")
    labels, scales = torch.arange(n) * 3 % 10, torch.full((n,), 2.5)
    drawn = run_program(program, sample_noise(7, range(n), pipeline.shape), [labels, scales])
    theirs = pipeline.sample(n, seed=7, labels=labels.tolist(), guidance_scale=2.5)
    assert (drawn - theirs).abs().max() < 1e-5


def test_a_teacher_is_a_program_of_so_many_steps():
    pipeline = bundled_teacher()
    program = export_program(pipeline, 3)
    drawn = run_program(program, sample_noise(0, range(2), pipeline.shape), [torch.tensor([4, 4])])
    assert program.steps == 3
    assert (drawn - pipeline.sample(2, steps=3, labels=[4, 4])).abs().max() < 1e-5


def test_an_unclipped_program_of_points():
    pipeline = teacher()
    program = export_program(pipeline, 4)
    noise = sample_noise(1, range(3), pipeline.shape)
    assert program.inputs == ("x", "step")
    assert (
        run_program(program, noise, []) - pipeline.sample(3, seed=1, steps=4)
    ).abs().max() < 1e-5


def test_a_program_clips_as_its_pipeline_does():
    noise = sample_noise(1, range(3), teacher().shape)
    for clipping in ("x0", "x0-and-eps"):
        pipeline = replace(teacher(), clip=0.3, clipping=clipping)
        drawn = run_program(export_program(pipeline, 4), noise, [])
        assert (drawn - pipeline.sample(3, seed=1, steps=4)).abs().max() < 1e-5


slow = pytest.mark.slow
RESNET = {"upsample_type": "resnet", "downsample_type": "resnet"}


@pytest.mark.parametrize(
    "name, config",
    [
        ("mlp", {}),
        ("unet", {}),
        pytest.param("uvit", {}, marks=slow),
        pytest.param("unet", RESNET, marks=slow),
        pytest.param("unet-condition", {}, marks=slow),
        pytest.param("dit", {}, marks=slow),
    ],
)
def test_batches_of_any_size(name, config):
    pipeline = exported_student(name, **config)
    assert largest_difference(pipeline, partial(run_program, export_program(pipeline))) < 1e-5


def test_the_network_is_as_before_after_the_trace():
    net = exported_student("unet").denoiser.net
    module = next(m for m in net.modules() if type(m).__name__ == "Upsample2D")
    with any_batch(net):
        assert "forward" in vars(module)
    assert "forward" not in vars(module)
    module.forward = own = module.forward
    with any_batch(net):
        pass
    assert module.forward is own


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["mlp", *(pytest.param(n, marks=slow) for n in ("uvit", "unet", "unet-condition"))]
)
def test_a_network_in_half_precision(name, dtype):
    """Equal to halfstep's own in the same type within two roundings; float32 is further away."""
    pipeline = exported_student(name)
    student = in_dtype(pipeline, dtype)
    program = export_program(student)
    draw, bound = partial(run_program, program), 2 * torch.finfo(dtype).eps
    assert largest_difference(student, draw) < bound < 1
    assert largest_difference(pipeline, draw) > 1e-5
    assert draw(*inputs(student, 3)).dtype is torch.float32
    weights = [v for k, v in program.exported.state_dict.items() if k.startswith("net.")]
    assert {weight.dtype for weight in weights} == {dtype}
    assert program.exported.state_dict["alpha_start"].dtype is torch.float32


def test_rounded_weights_are_float32_again():
    pipeline = exported_student("mlp")
    before = {k: v.clone() for k, v in pipeline.denoiser.state_dict().items()}
    weights = rounded_student(pipeline, torch.float16).denoiser.state_dict()
    assert all(v.dtype is torch.float32 for v in weights.values())
    assert all(torch.equal(v, before[k].half().float()) for k, v in weights.items())
    assert all(torch.equal(v, before[k]) for k, v in pipeline.denoiser.state_dict().items())


@pytest.mark.parametrize(
    "name", ["mlp", pytest.param("unet", marks=slow), pytest.param("uvit", marks=slow)]
)
def test_a_program_moves_to_another_device(name):
    """The meta device refuses an operation on tensors of two devices, as a GPU does."""
    pipeline = exported_student(name)
    program = move_to_device_pass(export_program(pipeline).exported, "meta")
    noise, conditions = inputs(pipeline, 3)
    moved = [one.to("meta") for one in (noise, torch.zeros(3, dtype=torch.int64), *conditions)]
    drawn = program.module()(*moved)
    assert drawn.device.type == "meta" and drawn.shape == noise.shape


def test_no_path_of_this_machine_is_in_a_program(tmp_path):
    from pathlib import Path

    import halfstep

    torch.export.save(export_program(exported_student("mlp")).exported, tmp_path / "p.pt2")
    assert str(Path(halfstep.__file__).parent).encode() not in (tmp_path / "p.pt2").read_bytes()


class Scaled(torch.nn.Module):
    """Multiplies by a number that its own code makes."""

    def __init__(self, factor=lambda x: 1.0):
        super().__init__()
        self.factor, self.weight = factor, torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x, t, cond=None):
        return self.weight * x * self.factor(x)


@pytest.mark.parametrize(
    "factor",
    [
        len,
        lambda x: x.tolist()[0][0],
        lambda x: 2.0 if x.sum() > 0 else 1.0,
        lambda x: float(x.mean()),
        lambda x: torch.from_numpy(x.numpy()),
        lambda x: 2.0 if x.shape[0] < 5 else 1.0,
    ],
)
def test_a_network_whose_code_cannot_be_traced_is_refused(factor):
    pipeline = Pipeline(Denoiser(Scaled(factor), Cosine(), V()), (3,))
    with pytest.raises(ConfigError, match=r"x\.shape\[0\] for len\(x\)") as caught:
        export_program(pipeline, 2)
    assert "\n" not in str(caught.value)


def test_an_error_of_the_network_stays_its_own():
    def fails(x):
        raise RuntimeError("its own")

    with pytest.raises(RuntimeError, match="its own"):
        export_program(Pipeline(Denoiser(Scaled(fails), Cosine(), V()), (3,)), 2)


def test_an_output_that_says_nothing_there_is_no_program():
    pipeline = Pipeline(Denoiser(Scaled(), RectifiedFlow(), Eps()), (3,), times=((1.0, 0.5, 0.0),))
    with pytest.raises(ConfigError, match="alpha = 0"):
        export_program(pipeline)


def test_what_ddim_does_not_walk_is_no_program():
    student = replace(teacher(), times=((1.0, 0.5, 0.0),))
    for other in (replace(student, sampler="stochastic"), replace(student, direction="invert")):
        with pytest.raises(ConfigError, match="a program is a step of DDIM"):
            export_program(other)
    assert export_program(replace(teacher(), sampler="dpm-fast"), 2).steps == 2
