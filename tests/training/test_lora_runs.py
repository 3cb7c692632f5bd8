"""Runs whose students are LoRAs: the adapter alone is trained, saved and read; the base is there once."""

import shutil
from dataclasses import replace

import pytest
import torch

from halfstep import Encoder, Pipeline, Stochastic
from halfstep.diffusion.prediction import Eps, V
from halfstep.errors import ConfigError
from halfstep.evaluation.metrics.cost import calls_of
from halfstep.identity import digest_of
from halfstep.methods import GuidedDistillation, Progressive, Reparameterise, Shrink
from halfstep.models import recipe
from halfstep.models.lora import Lora, LoraNet, plain_denoiser
from halfstep.pipeline.lora_file import digest_of_adapter, read_lora
from halfstep.training import distill, ProgressCallback, TrainingConfig
from halfstep.training.api import _PipelineRun
from halfstep.training.lora_run import LoraRun
from halfstep.training.run_folder import RunFolder
from halfstep.training.stages import RunOptions
from halfstep.workflows.live_bytes import LiveBytes
from tests.support import guided as guided_support
from tests.support.runs import (
    double_teacher,
    doubled,
    halve,
    job,
    losses,
    points,
    teacher,
    TRAINING,
)

HALVE = Progressive(start=4, stop=1, updates=(6,))
LORA = Lora(rank=2)


def run(out, teacher_, *, method=HALVE, lora=LORA, **options):
    return halve(out, pipeline=teacher_, method=method, lora=lora, **options)


def labelled_teacher(reads=None):
    made = guided_support.teacher_of()
    made.denoiser.parameterisation = reads or V()
    return made


def labelled():
    return guided_support.points()


def test_the_teacher_is_left_as_it_was_and_the_students_differ(tmp_path):
    given = teacher()
    before = given.sample(4, seed=1, steps=4)
    student = run(tmp_path, given)
    assert torch.equal(before, given.sample(4, seed=1, steps=4))
    assert all(p.requires_grad for p in given.denoiser.parameters())
    assert not torch.allclose(student.sample(4, seed=1), given.sample(4, seed=1, steps=1))


def test_a_stage_is_small_and_the_loaded_student_is_the_one_in_memory(tmp_path):
    student = run(tmp_path / "run", teacher())
    shutil.move(tmp_path / "run", tmp_path / "moved")
    folder = RunFolder.open(tmp_path / "moved")
    loaded = folder.student()
    assert (loaded.sample(5) - student.sample(5)).abs().max() < 1e-5
    student.save(tmp_path / "whole")
    assert torch.equal(Pipeline.load(tmp_path / "whole").sample(5), loaded.sample(5))


def test_the_same_call_returns_the_same_bits_and_another_rank_is_refused(tmp_path):
    first = run(tmp_path, teacher())
    assert torch.equal(first.sample(3), run(tmp_path, teacher()).sample(3))
    with pytest.raises(ConfigError, match="lora_rank = 2"):
        run(tmp_path, teacher(), lora=Lora(rank=3))
    with pytest.raises(ConfigError, match="lora_rank = 2"):
        run(tmp_path, teacher(), lora=None)


def test_a_student_of_a_lora_run_is_a_teacher_again(tmp_path):
    student = run(tmp_path / "a", teacher(), method=Progressive(start=4, stop=2, updates=(3,)))
    again = Progressive(start=2, stop=1, updates=(3,))
    from_memory = run(tmp_path / "b", student, method=again)
    loaded = RunFolder.open(tmp_path / "a").student()
    from_disk = run(tmp_path / "c", loaded, method=again)
    assert torch.equal(from_memory.sample(3), from_disk.sample(3))


def test_in_float64_the_adapter_is_too(tmp_path):
    student = run(tmp_path, double_teacher(), data=doubled())
    assert {p.dtype for p in student.denoiser.parameters()} == {torch.float64}
    loaded = RunFolder.open(tmp_path).student()  # as every run, in float32
    assert {p.dtype for p in loaded.denoiser.parameters()} == {torch.float32}
    student.save(tmp_path / "whole")
    assert torch.equal(Pipeline.load(tmp_path / "whole").sample(5), loaded.sample(5))


@pytest.mark.parametrize("method", [Shrink(student={"width": "4"})])
def test_a_smaller_network_is_no_lora(method, tmp_path):
    with pytest.raises(ConfigError, match="another network"):
        run(tmp_path, teacher(), method=method)
    assert not list(tmp_path.iterdir())


def test_a_rank_that_is_no_lora_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="lora is a Lora, got 4"):
        run(tmp_path, teacher(), lora=4)


def test_rank_0_is_refused():
    with pytest.raises(ConfigError, match="rank must be at least 1, got 0"):
        Lora(rank=0)


def test_in_bf16_the_base_is_stored_so_and_the_stage_has_it_in_float32(tmp_path):
    given = teacher()
    before = given.sample(3)
    training = replace(TRAINING, precision="bf16")
    student = distill(given, points(), tmp_path, method=HALVE, training=training, lora=LORA)
    base = student.denoiser.net.base
    assert {p.dtype for p in base.weights} == {torch.bfloat16, torch.float32}
    assert {p.dtype for p in student.denoiser.parameters()} == {torch.float32}
    loaded = RunFolder.open(tmp_path).student()
    assert (student.sample(4) - loaded.sample(4)).abs().max() < 0.05
    assert torch.equal(given.sample(3), before)
    with pytest.raises(ConfigError, match="load the stage"):
        student.save(tmp_path / "whole")


def most_of(out, teacher_, **options):
    """The most bytes of tensors that lived after an update, beside the teacher's weights."""
    most = []

    class Counting(ProgressCallback):
        def step(self, update, rate):
            most.append(live.now)

    with LiveBytes([*teacher_.denoiser.parameters()]) as live:
        halve(out, pipeline=teacher_, batch_size=2, method=HALVE, ema=0.0,
              job=job(callback=Counting()), **options)  # fmt: skip
    return max(most)


def test_the_weights_are_in_memory_once_in_every_stage(tmp_path):
    """Two halvings: a full student, its moments and its teacher are four copies beside the given one."""
    given = teacher(width=256)
    size = sum(p.numel() * p.element_size() for p in given.denoiser.parameters())
    assert most_of(tmp_path / "full", given) > 3.9 * size
    assert most_of(tmp_path / "lora", given, lora=LORA) < 0.3 * size


SCALE = 3.0


def guided(out, scales=(SCALE, SCALE), **options):
    method = GuidedDistillation(
        guidance_range=scales,
        updates=6,
        halving=Progressive(start=4, stop=2, updates=(3,)),
        **options,
    )
    return run(out, labelled_teacher(), method=method, data=labelled())


def test_a_guided_student_of_one_scale_is_the_adapter_alone(tmp_path):
    student = guided(tmp_path)
    loaded = RunFolder.open(tmp_path).student()
    assert loaded.guidance_range == student.guidance_range == (SCALE, SCALE)
    assert not loaded.takes_scale and not recipe(loaded.denoiser.net)[1].get("guidance_embed_dim")
    samples = student.sample(4, guidance_scale=SCALE)
    assert (loaded.sample(4, guidance_scale=SCALE) - samples).abs().max() < 1e-5
    with pytest.raises(ConfigError, match="from 3 to 3"):
        loaded.sample(4)
    assert calls_of(loaded, "ddim", 2, SCALE) == 2
    # It is a teacher, too: of full students, and of LoRAs.
    for name, lora in (("again", LORA), ("full", None)):
        later = run(tmp_path / name, loaded, method=Progressive(start=2, stop=1, updates=(2,)),
                    data=labelled(), lora=lora)  # fmt: skip
        assert later.guidance_range == (SCALE, SCALE)
        assert later.sample(2, guidance_scale=SCALE).isfinite().all()


def test_the_guided_student_learns_the_guided_teacher(tmp_path):
    """Untrained it is the conditional teacher, so that its first loss is what guidance changes."""
    teacher_ = labelled_teacher()
    method = GuidedDistillation(guidance_range=(1.0, 1.0), updates=2, halving=None)
    run(tmp_path / "one", teacher_, method=method, data=labelled())
    method = replace(method, guidance_range=(SCALE, SCALE))
    run(tmp_path / "three", teacher_, method=method, data=labelled())
    assert losses(tmp_path / "one")[0] < 1e-6 < 1e-4 < losses(tmp_path / "three")[0]


def test_a_range_of_scales_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--guidance-range 5 5"):
        guided(tmp_path, scales=(1.0, 5.0))
    with pytest.raises(ConfigError, match="another network"):
        guided(tmp_path, student={"width": "4"})
    assert not list(tmp_path.iterdir())


METHODS_AND_TEACHERS = {
    "progressive": (HALVE, V()),
    "stochastic": (Stochastic(start=4, stop=1, updates=(4,)), V()),
    "encoder": (Encoder(start=4, stop=1, updates=(4,)), V()),
    "reparameterise": (Reparameterise(updates=4), V()),
    "from eps": (replace(HALVE, reparameterise_updates=3), Eps()),
    "guided": (GuidedDistillation(guidance_range=(3.0, 3.0), updates=4, halving=HALVE), V()),
    "shrink": (Shrink(student={"width": "8"}, updates=4), V()),
}


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("name", METHODS_AND_TEACHERS)
def test_frozen_layers_never_move_and_the_teacher_does_not(name, lora, tmp_path):
    """By any method: a layer of the teacher's that was frozen before, and all of the teacher."""
    method, reads = METHODS_AND_TEACHERS[name]
    if lora is not None and not method.keeps_network:
        pytest.skip("a smaller network is no LoRA")
    teacher_ = labelled_teacher(reads)
    model = teacher_.denoiser.net.model
    model.blocks[0].fc1.requires_grad_(False)
    before = {k: v.clone() for k, v in teacher_.denoiser.net.state_dict().items()}
    student = run(tmp_path, teacher_, method=method, data=labelled(), lora=lora, weight_decay=0.1)
    assert all(torch.equal(before[k], v) for k, v in teacher_.denoiser.net.state_dict().items())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == [
        "blocks.0.fc1.weight", "blocks.0.fc1.bias"
    ]  # fmt: skip
    after = plain_denoiser(student.denoiser).net.state_dict()
    if name != "shrink":
        frozen = "model.blocks.0.fc1.weight"
        assert torch.equal(before[frozen], after[frozen])
    assert not torch.equal(before["model.blocks.0.fc2.weight"], after["model.blocks.0.fc2.weight"])


def test_each_halvings_teacher_is_the_adapter_before_it(tmp_path):
    """Toy students that are set to exact values: the next stage's target is made of them."""
    given, seen = teacher(), []

    class Watched(Progressive):
        def stages(self, teacher_):
            for stage in super().stages(teacher_):
                old, new = stage.objective.teacher, stage.student
                assert old.net.base is new.net.base
                seen.append((outputs(old), outputs(new)))
                yield stage
                seen[-1] += (outputs(new),)

    method = Watched(start=8, stop=1, updates=(3,))
    run(tmp_path, given, method=method)
    first = outputs(given.denoiser)
    for k, (old, new, trained) in enumerate(seen):
        assert torch.equal(old, first if k == 0 else seen[k - 1][2])
        assert torch.equal(new, old) and not torch.equal(trained, old)
    assert len(seen) == 3


@torch.no_grad()
def outputs(denoiser):
    x = points().values[:4]
    return denoiser(x, torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)).x0


def test_the_gate_sees_the_student_unmerged_and_its_weights_are_known_when_it_is_loaded(tmp_path):
    seen = []

    def gate(student):
        seen.append(type(student.denoiser.net))
        return True

    run(tmp_path, teacher(), job=job(gate=gate))
    assert seen == [LoraNet, LoraNet]
    folder = RunFolder.open(tmp_path).stages[-1]
    student = run(tmp_path, teacher(), job=job(gate=gate))
    assert digest_of(student.denoiser) == digest_of_adapter(read_lora(folder))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, on import
def test_a_compiled_run_is_a_run(tmp_path):
    plain, compiled = (
        run(tmp_path / str(compile), teacher(), compile=compile) for compile in (False, True)
    )
    assert (plain.sample(3) - compiled.sample(3)).abs().max() < 1e-5


def test_the_device_never_holds_a_base_in_float32(monkeypatch):
    """It is cast where the teacher lies; on meta the moved weights are counted alone."""
    teacher_ = teacher()
    training = TrainingConfig(precision="bf16")
    made = _PipelineRun.on(teacher_, training, RunOptions(device="cpu"))
    made = replace(made, lora=LoraRun(LORA, "digest"))
    monkeypatch.setattr(made.processes, "device", torch.device("meta"))
    before = outputs(teacher_.denoiser)
    with LiveBytes(device="meta") as live:
        moved = made.teacher(teacher_)
    weights = 4 * sum(p.numel() for p in teacher_.denoiser.parameters())
    assert {p.device.type for p in moved.net.base.weights} == {"meta"}
    assert weights / 2 <= live.peak < 0.75 * weights
    assert {p.device.type for p in teacher_.denoiser.parameters()} == {"cpu"}
    assert torch.equal(outputs(teacher_.denoiser), before)
