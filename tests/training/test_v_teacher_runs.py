"""Runs from an eps teacher: the v teacher's stage on disk, resumed to the bit, and the gate's teacher."""

from dataclasses import replace

import pytest
import torch

from halfstep.batch import Batch, Cond
from halfstep.diffusion.analytic import Mixture, mixture_teacher
from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import Eps, V
from halfstep.diffusion.schedules import BetaTable, Cosine
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.evaluation.quality_gate import DataRatio, Halvings, QualityGate
from halfstep.methods import Chain, GuidedDistillation, Progressive, Reparameterise, Shrink
from halfstep.methods.diffusion.reparameterise import Match
from halfstep.models import build
from halfstep.rng import Draw
from halfstep.training import distill, TrainingConfig
from halfstep.training.run_folder import RunFolder
from tests.support.denoisers import seeded
from tests.support.guided import points, run, SMALL, teacher_of
from tests.support.runs import bits, halted, halve, logged_lines, teacher as plain_teacher

FEW = {"reparameterise_updates": 5}


def eps_read(pipeline):
    """The same network, which is said to predict eps."""
    denoiser = pipeline.denoiser
    return replace(pipeline, denoiser=Denoiser(denoiser.net, denoiser.schedule, Eps()))


METHOD = Progressive(start=8, stop=2, updates=(7,))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "r"
    halve(out, pipeline=eps_read(plain_teacher()), method=METHOD)
    return out


def test_the_stages_on_disk(whole):
    opened = RunFolder.open(whole)
    assert [folder.name for folder in opened.stages] == ["v-teacher", "0004-steps", "0002-steps"]
    planned = [
        (stage["name"], stage["steps"], stage["updates"])
        for stage in opened.about["plan"]["stages"]
    ]
    assert planned == [("v-teacher", None, 7), ("0004-steps", 4, 7), ("0002-steps", 2, 14)]
    assert opened.options["reparameterise_updates"] is None and opened.teacher_times == uniform(8)
    v = opened.stage("v-teacher")
    assert v.denoiser.parameterisation == V() and v.times == ()
    assert [student.step_counts for student in opened.students()] == [(4,), (2,)]
    assert opened.student().step_counts == (2,) and opened.student(4).step_counts == (4,)
    assert opened.first_student() is None


@pytest.mark.parametrize(
    "stage, update", [("v-teacher", 1), ("v-teacher", 4), ("v-teacher", 7), ("0004-steps", 2)]
)
def test_a_run_that_was_killed_ends_at_the_same_bits(whole, tmp_path, stage, update):
    options = {"pipeline": eps_read(plain_teacher()), "method": METHOD}
    halted(tmp_path / "r", stage, update, **options)
    halve(tmp_path / "r", pipeline=eps_read(plain_teacher()), method=METHOD)
    assert bits(tmp_path / "r") == bits(whole)
    assert logged_lines(tmp_path / "r") == logged_lines(whole)


def test_the_first_stage_is_the_run_of_reparameterise(whole, tmp_path):
    first = halve(
        tmp_path / "v", pipeline=eps_read(plain_teacher()), method=Reparameterise(updates=7)
    )
    made = bits(tmp_path / "v")
    assert (
        made["stages/v-teacher/pipeline.safetensors"]
        == (bits(whole)["stages/v-teacher/pipeline.safetensors"])
    )
    METHOD.check(first)
    assert [stage.name for stage in METHOD.plan(first)] == ["0004-steps", "0002-steps"]


def test_other_updates_are_another_run(whole):
    method = replace(METHOD, reparameterise_updates=6)
    with pytest.raises(ConfigError, match="reparameterise_updates"):
        halve(whole, pipeline=eps_read(plain_teacher()), method=method)


def test_an_option_without_its_stage_leaves_no_folder(tmp_path):
    with pytest.raises(ConfigError, match="leave reparameterise_updates out"):
        halve(tmp_path / "r", method=replace(METHOD, **FEW))
    assert not (tmp_path / "r").exists()


def test_guided_students_of_an_eps_teacher(tmp_path):
    method = replace(SMALL, **FEW)
    student = run(tmp_path / "r", teacher=eps_read(teacher_of()), method=method)
    opened = RunFolder.open(tmp_path / "r")
    names = [folder.name for folder in opened.stages]
    assert names == ["v-teacher", "guided", "0004-steps", "0002-steps"]
    assert opened.stage("v-teacher").guidance_range is None
    assert opened.first_student().guidance_range == student.guidance_range == (1.0, 4.0)
    assert student.denoiser.parameterisation == V()


def test_a_plan_of_an_eps_teacher(tmp_path):
    shrink = Shrink(student={"width": "8"}, updates=3)
    method = Chain(shrink=shrink, then=Progressive(start=4, stop=2, updates=(3,)), **FEW)
    run(tmp_path / "r", teacher=eps_read(teacher_of()), method=method)
    opened = RunFolder.open(tmp_path / "r")
    assert [folder.name for folder in opened.stages] == ["v-teacher", "shrunk", "0002-steps"]
    assert opened.record("v-teacher")["updates"] == 5
    assert opened.stage("shrunk").denoiser.parameterisation == V()


def test_the_gate_has_the_tolerance_of_a_method_that_only_halves(tmp_path):
    """And measures the halvings alone, against the teacher that was given."""
    teacher, method = eps_read(teacher_of()), Progressive(start=4, stop=1, updates=(3,))
    net = teacher.denoiser.net  # on a table, where the gate can measure an eps teacher
    time = NetTime(scale=1000.0, offset=-1.0)
    teacher = replace(teacher, denoiser=Denoiser(net, BetaTable(), Eps(), time=time))
    halvings = Halvings.of(method, teacher)
    assert halvings == Halvings.of(method, teacher_of()) and halvings.alone
    guided = GuidedDistillation(halving=method)
    assert not Halvings.of(guided, teacher).alone
    gate = QualityGate(metric=DataRatio(), samples=16, until=1, full_steps=4)
    distill(
        teacher, points(), tmp_path / "r", method=method, gate=gate,
        training=TrainingConfig(batch_size=6),
    )  # fmt: skip
    record = RunFolder.open(tmp_path / "r").gate
    assert record["tolerance"] == 1.10
    assert [decision["stage"] for decision in record["decisions"]] == ["0002-steps", "0001-steps"]


@pytest.mark.slow
def test_a_v_teacher_of_an_exact_eps_teacher_has_its_predictions_at_every_label():
    """Trained for 1500 updates on the mixture: x0 within 0.06 of the exact one, the null branch too."""
    torch.manual_seed(0)
    data, teacher = Mixture(), mixture_teacher(Cosine(), Mixture(), Eps())
    config = {"dim": 2, "width": 64, "depth": 2, "num_classes": 4}
    student = Denoiser(build("mlp", config), Cosine(), V())
    match = Match(teacher, Cosine(), lambda x, eps: x + eps, drop=0.25, null=3)
    optimiser, rng = torch.optim.Adam(student.parameters()), seeded(1)
    x, label = data.labelled(20_000, seeded(11), torch.float32)
    for k in range(1500):
        optimiser.param_groups[0]["lr"] = 8e-3 * (1 - k / 1500)
        rows = torch.randint(len(x), (256,), generator=rng)
        optimiser.zero_grad()
        match(student, Batch(x[rows], Cond(label[rows])), Draw.all(rng, 256)).mean().backward()
        optimiser.step()
    t = 0.9 * torch.rand(3000, generator=seeded(8), dtype=torch.float64)
    x_t = student.level(t, x[:3000]).mix(x[:3000], torch.randn(3000, 2, generator=seeded(7)))
    for cond in (Cond(label[:3000]), Cond(torch.full((3000,), 3))):
        error = student(x_t, t, cond).x0 - teacher(x_t, t, cond).x0
        assert error.square().mean().sqrt() < 0.06
