"""The quality gate from Python: `halfstep.distill(..., gate=QualityGate())`, and what it is bound to."""

from dataclasses import replace

import pytest
import torch

import halfstep
from halfstep import QualityGate
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import Eps, V, Velocity
from halfstep.diffusion.schedules import BetaTable, Cosine, RectifiedFlow
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.evaluation import Features
from halfstep.evaluation.gate_meter import TeacherSource
from halfstep.evaluation.gate_metrics import DataRatio, GuidedTeacherRatio
from halfstep.evaluation.quality_gate import fewest_start, full_for_auto
from halfstep.hub.bundled import bundled_students, bundled_teacher
from halfstep.methods import (
    Chain,
    Encoder,
    GuidedDistillation,
    Progressive,
    Reparameterise,
    Shrink,
)
from halfstep.pipeline import Pipeline
from halfstep.training import ProgressCallback
from halfstep.training.gate_protocol import IdentifiedGate
from tests.support.runs import job, points, teacher, TRAINING

FEW = {"samples": 16, "full_steps": 16}
HALVING = Progressive(start=8, stop=2, updates=(3,))


class Notes(ProgressCallback):
    """A watch that remembers its notes."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HALFSTEP_CACHE", str(tmp_path / "cache"))


def distilled(out, gate, callback=None, work=None):
    work = work or job(callback=callback or Notes())
    return halfstep.distill(
        teacher(), points(), out, method=HALVING, training=TRAINING, gate=gate, job=work
    )


def bound(gate, method, *, pipeline=None, data=None, out="run", **options):
    pipeline, data = pipeline or teacher(), data or points()
    return gate.bind(pipeline, data, out, method, device="cpu", **options)


# A run.


def test_a_run_is_gated_without_a_console(tmp_path, monkeypatch):
    out, callback = tmp_path / "run", Notes()
    student = distilled(out, QualityGate(tolerance=99, **FEW), callback)
    run = halfstep.RunFolder.open(out)
    assert [decision["steps"] for decision in run.gate["decisions"]] == [4, 2] and run.gate[
        "best"
    ] == "0002-steps"
    about = run.gate["about"]
    assert (about["features"], about["full"], about["samples"]) == ("coordinates", 16, 16)
    assert [note[:8] for note in callback.notes] == ["4 steps:", "2 steps:"]
    assert len(student.times[0]) == 3
    monkeypatch.setattr(Pipeline, "sample", None)
    again = Notes()
    distilled(out, QualityGate(tolerance=99, **FEW), again)
    assert not again.notes  # it measures nothing again
    with pytest.raises(ConfigError, match="tolerance 99 and now with 98"):
        distilled(out, QualityGate(tolerance=98, **FEW))


def test_a_run_ends_at_the_first_student_that_is_too_far(tmp_path):
    out = tmp_path / "run"
    features = Features("themselves", lambda x: x)
    worse = replace(TRAINING, learning_rate=50.0, max_grad_norm=0.0)
    halfstep.distill(
        teacher(), points(), out, method=Progressive(start=8, updates=(0, 20, 20)), training=worse,
        gate=QualityGate(tolerance=1.6, features=features, **FEW), job=job(),
    )  # fmt: skip
    run = halfstep.RunFolder.open(out)
    assert [decision["verdict"] for decision in run.gate["decisions"]] == ["passed", "broken"]
    assert len(run.student().times[0]) - 1 == 4
    assert not (out / "stages" / "0001-steps").exists()


def test_a_rehearsal_looks_at_no_student(tmp_path, monkeypatch):
    monkeypatch.setattr(Pipeline, "sample", None)
    gate = bound(QualityGate(**FEW), HALVING, dry_run=True)
    student = replace(teacher(), times=(uniform(4),))
    with pytest.raises(AssertionError, match="rehearsal"):
        gate(student)
    with pytest.raises(ConfigError, match="perhaps you meant"):
        bound(QualityGate(features="digitz"), HALVING, dry_run=True)


def test_two_gates_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="two gates"):
        distilled(tmp_path / "run", QualityGate(**FEW), work=job(gate=lambda student: True))
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_leaves_no_folder(tmp_path):
    for gate in (
        QualityGate(full_steps=4),
        QualityGate(metric=GuidedTeacherRatio(guidance_scales=(2.0,))),
    ):
        with pytest.raises(ConfigError, match=r"--full 8|--guidance-scales"):
            distilled(tmp_path / "run", gate)
        assert not (tmp_path / "run").exists()


# What it is bound to.


def test_the_method_decides_the_metric_and_the_tolerance():
    digits, pipeline = halfstep.load_data("digits"), bundled_teacher()
    guided = GuidedDistillation(guidance_range=(1.0, 4.0), halving=HALVING)
    late = replace(guided, halving=Progressive(start=128, stop=32))
    narrow = replace(guided, guidance_range=(1.5, 2.0))
    plain = Chain(shrink=Shrink(depth=2), then=HALVING)
    kinds = [
        (HALVING, 1.10, 16, "data", None),
        (plain, 2.0, 16, "data", None),
        (guided, 2.0, 64, "guidance_scales", [1.0, 3.0]),
        (late, 2.0, 128, "guidance_scales", [1.0, 3.0]),
        (replace(plain, then=narrow), 2.0, 64, "guidance_scales", [1.5, 2.0]),
    ]
    for method, tolerance, full, key, scales in kinds:
        gate = bound(QualityGate(), method, pipeline=pipeline, data=digits, dry_run=True)
        assert (gate.tolerance, gate.about["full"], gate.about["features"]) == (
            tolerance,
            full,
            "digits",
        )
        assert ("data" in gate.about) == (key == "data") and gate.about.get(
            "guidance_scales"
        ) == scales
        assert isinstance(gate, IdentifiedGate) and gate.identity["about"] == gate.about
    gate = QualityGate(tolerance=1.5, metric=DataRatio(), until=2, seed=3, **FEW)
    gate = bound(gate, guided, pipeline=pipeline, data=digits, dry_run=True)
    assert (gate.tolerance, gate.until, gate.most) == (1.5, 2, 128) and "data" in gate.about
    scales = QualityGate(metric=GuidedTeacherRatio(guidance_scales=(2.0, 1.0)))
    gate = bound(scales, guided, pipeline=pipeline, data=digits, dry_run=True)
    assert gate.about["guidance_scales"] == [1.0, 2.0]


def test_what_is_not_halved_has_no_gate():
    assert bound(QualityGate(), Reparameterise()) is None
    with pytest.raises(ConfigError, match="encode"):
        bound(QualityGate(), Encoder(start=8, stop=2))


def test_a_teacher_that_is_a_student_has_its_own_full_steps():
    student = replace(teacher(), times=(uniform(8),))
    assert bound(QualityGate(), HALVING, pipeline=student, dry_run=True).about["full"] == 8
    with pytest.raises(ConfigError, match="not distilled for 16 steps"):
        bound(QualityGate(full_steps=16), HALVING, pipeline=student)


@pytest.mark.parametrize(
    "options, word",
    [({"tolerance": 0.5}, "tolerance"), ({"until": 0}, "until"), ({"samples": 2}, "samples"),
     ({"full_steps": -1}, "full_steps"), ({"seed": -1}, "seed"), ({"metric": "data"}, "metric")],
)  # fmt: skip
def test_options_that_cannot_be(options, word):
    with pytest.raises(ConfigError, match=word):
        QualityGate(**options)


def test_a_guided_student_is_compared_with_its_guided_teacher():
    pipeline, student = bundled_teacher(), bundled_students()[-1]
    method = GuidedDistillation(guidance_range=student.guidance_range, halving=Progressive(start=8))
    config = QualityGate(samples=16, full_steps=8, tolerance=99)
    gate = bound(config, method, pipeline=pipeline, data=halfstep.load_data("digits"), out="none")
    ratio = gate.measure(student, 16)
    assert 0 < ratio.low <= ratio.value <= ratio.high


# Memory, and the start.


def test_the_teacher_is_read_again_where_that_can_be_done():
    made = []

    def load():
        made.append(teacher())
        return made[-1]

    source = TeacherSource(teacher(), load=load)
    assert not made and source() is made[0] and source() is made[0]
    source.release()
    assert source() is made[1]
    pipeline = teacher()
    source = TeacherSource(pipeline)
    source.release()
    assert source() is pipeline and source.device == torch.device("cpu")


def test_the_start_is_chosen_from_python(tmp_path):
    config, method, heard = (
        QualityGate(samples=64, tolerance=9),
        Progressive(stop=4, updates=(1,)),
        [],
    )
    full = full_for_auto(config, method, teacher())
    assert full == 64
    begin = replace(method, start=full)
    meter = replace(config, full_steps=full).meter(teacher(), points(), begin, device="cpu")
    chosen = fewest_start(method, meter, tmp_path / "run", tell=heard.append)
    assert chosen.start in (8, 16, 32, 64) and heard[0].startswith(f"{chosen.start} steps: ")
    gate = bound(replace(config, full_steps=full), chosen, meter=meter)
    assert gate.measure == meter.student


def test_an_eps_teacher_that_starts_without_signal_is_no_reference():
    """On the cosine its first x0 is rounding over 4.5e-5; on a table of betas it is one."""
    eps = replace(teacher(), denoiser=Denoiser(teacher().denoiser.net, Cosine(), Eps()))
    for refused in (
        lambda: QualityGate(**FEW).full_steps_of(HALVING, eps),
        lambda: full_for_auto(QualityGate(**FEW), HALVING, eps),
        lambda: distilled_of(eps, "run"),
    ):
        with pytest.raises(ConfigError, match="tolerance 0"):
            refused()
    for schedule, reads in ((BetaTable(), Eps()), (Cosine(), V()), (RectifiedFlow(), Velocity())):
        readable = replace(eps, denoiser=Denoiser(eps.denoiser.net, schedule, reads))
        assert QualityGate(**FEW).full_steps_of(HALVING, readable) == 16


def distilled_of(pipeline, out):
    gate = QualityGate(**FEW)
    return halfstep.distill(pipeline, points(), out, method=HALVING, training=TRAINING, gate=gate)
