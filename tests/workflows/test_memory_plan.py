"""The planned bytes of a run are those that it takes, within 15 %, of every option that changes them."""

from contextlib import suppress

import pytest
import torch
from torch import nn

from halfstep.cli.console.run_plan import in_bytes
from halfstep.data import Dataset
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.methods import Progressive
from halfstep.models import build
from halfstep.models.half_storage import mark_stored, store_weights
from halfstep.models.lora import Lora, LoraBase, LoraNet
from halfstep.pipeline import Pipeline
from halfstep.training import distill, RunOptions, TrainingConfig
from halfstep.training.stages import DryRunFinished
from halfstep.workflows.live_bytes import LiveBytes
from halfstep.workflows.memory_plan import memory_plan, optimiser_bytes, Run, start_bytes

SHAPE = (3, 8, 8)
UVIT = {"img_size": 8, "patch_size": 2, "in_chans": 3, "embed_dim": 64, "depth": 2, "num_heads": 4}
LEAST, MOST = 0.85, 1.15


def teacher():
    torch.manual_seed(0)
    return Pipeline(Denoiser(build("uvit", UVIT), Cosine(), V()).freeze(), SHAPE)


def distilled(teachers, out, training, lora, **job):
    data = Dataset(torch.rand(16, *SHAPE) * 2 - 1)
    distill(
        teachers.pop(), data, out, method=Progressive(start=4, stop=2, updates=(2,)),
        training=training, lora=lora, job=RunOptions(device="cpu", **job),
    )  # fmt: skip


def planned(out, training, lora=None, **job):
    plans = []

    def plan(stages, data, training, processes):
        plans.append(memory_plan(next(stages), data, training, processes.device))

    with suppress(DryRunFinished):
        distilled([teacher()], out, training, lora, dry_run=plan, **job)
    return plans[0]


CASES = {
    "fp32": {},
    "micro-batches": {"micro_batch_size": 2},
    "ema": {"ema": 0.9},
    "bf16": {"precision": "bf16"},
    "8-bit": {"optimiser": "adamw-8bit"},
    "muon": {"optimiser": "muon", "micro_batch_size": 2},
    "checkpointing": {},
    "lora": {},
    "lora, bf16": {"precision": "bf16"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_plan_is_what_a_run_takes(case, tmp_path):
    training = TrainingConfig(batch_size=8, **CASES[case])
    lora = Lora(rank=4) if "lora" in case else None
    job = {"gradient_checkpointing": case == "checkpointing"}
    plan, teachers = planned(tmp_path / "x", training, lora, **job), [teacher()]
    with LiveBytes() as live:
        distilled(teachers, tmp_path / "y", training, lora, **job)
    assert LEAST <= plan.peak / live.peak <= MOST, plan
    assert plan.peak == sum(plan.parts.values())


def test_the_start_of_a_lora_in_half_precision_is_told(tmp_path, monkeypatch):
    """The float32 teacher lies beside its copy: of a wide network more than training takes."""
    monkeypatch.setitem(UVIT, "embed_dim", 384)
    training, lora = TrainingConfig(batch_size=2, precision="bf16"), Lora(rank=1)
    plan = planned(tmp_path / "x", training, lora)
    with LiveBytes() as live:
        distilled([teacher()], tmp_path / "y", training, lora)
    assert plan.peak < LEAST * live.peak
    assert LEAST <= plan.start / live.peak <= MOST
    net = LoraNet(LoraBase(nn.Sequential(nn.Linear(2, 5, bias=False), nn.LayerNorm(3)), 1))
    assert start_bytes(net) == 0
    store_weights(net.base.net, torch.bfloat16)
    assert start_bytes(net) == 10 * (2 + 4) + 6 * 4
    read = nn.Sequential(nn.Linear(2, 5, bias=False).bfloat16())
    mark_stored(read, torch.bfloat16, torch.float32)
    assert start_bytes(LoraNet(LoraBase(read, 1))) == 0


def test_what_an_option_saves_is_the_difference_of_two_plans(tmp_path):
    base = {"batch_size": 8, "ema": 0.9}
    plan = planned(tmp_path / "x", TrainingConfig(**base))
    savings = dict(plan.savings)
    others = {
        "--micro-batch-size 1": {"micro_batch_size": 1},
        "--optimiser adamw-8bit": {"optimiser": "adamw-8bit"},
        "--ema 0": {"ema": 0.0},
    }
    for option, change in others.items():
        other = planned(tmp_path / "x", TrainingConfig(**{**base, **change}))
        assert savings[option] == pytest.approx(plan.peak - other.peak, abs=2000), option
    less = planned(tmp_path / "x", TrainingConfig(**base), gradient_checkpointing=True)
    assert savings["--gradient-checkpointing"] == plan.peak - less.peak > 0
    assert "--gradient-checkpointing" not in dict(less.savings)
    lora = planned(tmp_path / "x", TrainingConfig(**base), Lora(rank=16))
    beside = (plan.peak - plan.activations) - (lora.peak - lora.activations)
    assert savings["--lora-rank 16"] == pytest.approx(beside, rel=0.01)
    assert not any(name.startswith(("--lora", "--offload")) for name, _ in lora.savings)
    stored = planned(tmp_path / "x", TrainingConfig(**base, precision="bf16"), Lora(rank=16))
    assert dict(lora.savings)["--precision bf16"] == lora.teacher - stored.teacher > 0


def test_no_lora_is_told_for_a_student_of_a_range_of_scales():
    student = Denoiser(nn.Sequential(nn.Linear(64, 64)), Cosine(), V())

    def savings(any_scale):
        run = Run(
            student, (), TrainingConfig(batch_size=2),
            lambda n: student.net(torch.ones(n, 64)).sum(), 2, any_scale=any_scale,
        )  # fmt: skip
        return [option for option, _ in run.savings()]

    assert "--lora-rank 16" in savings(False) and "--lora-rank 16" not in savings(True)


def test_the_bytes_of_moments():
    net = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64))
    count, large = 64 * 64 + 3 * 64, 64 * 64
    sizes = {
        name: optimiser_bytes(net, TrainingConfig(optimiser=name))
        for name in ("adamw", "adamw-8bit", "muon")
    }
    assert sizes["adamw"] == 8 * count + 4 * 4
    assert sizes["adamw-8bit"] == 2 * (large + large // 64 + 1024) + 8 * 3 * 64 + 4 * 4
    assert sizes["muon"] == 4 * large + 8 * 3 * 64 + 3 * 4
    net[0].weight.requires_grad_(False)
    assert optimiser_bytes(net, TrainingConfig()) == 8 * 3 * 64 + 3 * 4


def test_an_offloaded_teacher_is_elsewhere():
    student = nn.Linear(8, 8)
    run = Run(
        student, (nn.Linear(8, 4),), TrainingConfig(batch_size=2),
        lambda n: student(torch.ones(n, 8)).sum(), 2, offloaded=True,
    )  # fmt: skip
    assert run.plan().teacher == 0 and run.plan().elsewhere == 4 * (8 * 4 + 4)


@pytest.mark.gpu
def test_the_plan_is_what_a_gpu_allocates(tmp_path):
    training, plans, teachers = TrainingConfig(batch_size=8, micro_batch_size=4), [], [teacher()]

    def plan(stages, data, training, processes):
        plans.append(memory_plan(next(stages), data, training, processes.device))

    data = Dataset(torch.rand(16, *SHAPE) * 2 - 1)
    method = Progressive(start=4, stop=2, updates=(2,))
    with suppress(DryRunFinished):
        job = RunOptions(device="cuda", dry_run=plan)
        distill(teacher(), data, tmp_path / "x", method=method, training=training, job=job)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    job = RunOptions(device="cuda")
    distill(teachers.pop(), data, tmp_path / "y", method=method, training=training, job=job)
    allocated = torch.cuda.max_memory_allocated() - before
    assert LEAST <= plans[0].peak / allocated <= MOST


@pytest.mark.parametrize(
    ("size", "text"),
    [(999, "1.0 kB"), (1_500_000, "1.5 MB"), (123_456_789, "123 MB"), (24_500_000_000, "24.5 GB")],
)
def test_a_size_in_words(size, text):
    assert in_bytes(size) == text
