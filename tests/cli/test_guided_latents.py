"""Guided distillation of models of latents: labels or texts, an eps teacher first, 16 steps to 4."""

import json
import re
from dataclasses import replace

import pytest
import torch

from halfstep.diffusion.analytic import mixture_teacher
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import Eps, V
from halfstep.diffusion.schedules import BetaTable, Cosine
from halfstep.methods import DenoiserOnly, GuidedDistillation, Progressive
from halfstep.methods.diffusion.reparameterise import Reparameterise
from halfstep.models import build, recipe
from halfstep.pipeline import Pipeline
from halfstep.pipeline.conditioning import defaults_of
from halfstep.training import distill, TrainingConfig
from tests.support.denoisers import seeded
from tests.support.guided import DATA, fit, labelled_points, rms
from tests.support.latent_runs import among_photos, latents, TOKENS, WIDTH
from tests.support.networks import TINY
from tests.support.runs import job

NET = ("--net-config", "embed_dim", "16", "depth", "2", "num_heads", "2", "patch_size", "2")


@pytest.fixture
def cli(cli, tmp_path, monkeypatch):
    """Types a command in a folder of photos and a codec; what it printed."""
    return among_photos(cli, tmp_path, monkeypatch)


@pytest.fixture(params=["labels", "texts"])
def condition(request, cli, tmp_path):
    """A folder l of latents with labels or with captions, and an eps teacher t of them."""
    encode = ["latents", "--data", "photos", "--codec", "codec", "--out", "l", "--device", "cpu"]
    if request.param == "texts":
        pytest.importorskip("transformers")
        from tests.support.texts import clip

        clip(tmp_path / "clip")
        encode += ["--text", "clip", "--tokens", "5"]
    cli(*encode)
    few = ("--updates", 2, "--batch-size", 4, "--device", "cpu", "--data", "l")
    dropped = (f"--{request.param}", "--drop-labels", 0.3, "--predicts", "eps")
    cli("train", "denoiser", *few, *dropped, "--out", "t", *NET)
    return request.param


def test_an_eps_teacher_of_latents_goes_from_16_to_4(condition, cli, tmp_path, capsys):
    few = ["--data", "l", "--updates", 2, "--halving-updates", 2, "--batch-size", 4]
    few += ["--guidance-embed-dim", 8]
    steps = ["--start", 16, "--stop", 4, "--guidance-range", 1, 3, "--device", "cpu"]
    out = cli("distill", "guided", "--teacher", "t", "--out", "g", *few, *steps, "--tolerance", 0)
    assert re.search(r"plan +eps to v in 2 updates, guidance 1 to 3 in one call a step", out)
    names = sorted(path.name for path in (tmp_path / "g" / "stages").iterdir())
    assert names == ["0004-steps", "0008-steps", "guided", "v-teacher"]
    student = Pipeline.load(tmp_path / "g" / "stages" / "0004-steps")
    assert student.guidance_range == (1.0, 3.0) and student.codec.scale == 0.5
    assert student.sample(2, guidance_scale=2.0).shape == (2, 1, 8, 8)
    assert student.sample(2, guidance_scale=2.0, latents=True).shape == (2, 2, 4, 4)
    lines = [json.loads(x) for x in (tmp_path / "g" / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if "x0_error_by_scale" in line)
    assert list(first["x0_error_by_scale"]) == ["1", "1.5", "2", "2.5", "3"]
    words = ["--text", "clip", "--prompt", "a cat"] if condition == "texts" else ["--labels", "1"]
    cli("sample", "g", "--steps", 4, "--guidance-scale", 2.5, "--n", 2, *words, "--out", "x")
    assert len(list((tmp_path / "x").glob("*.png"))) >= 1
    if condition == "texts":
        assert student.empty.shape == (5, 32) and not student.class_names


def test_it_ends_in_a_table(cli, tmp_path):
    pytest.importorskip("halfstep.evaluation.guided_comparison")
    cli("latents", "--data", "photos", "--codec", "codec", "--out", "l", "--device", "cpu")
    few = ("--data", "l", "--updates", 2, "--batch-size", 4, "--device", "cpu")
    cli("train", "denoiser", *few, "--labels", "--drop-labels", 0.3, "--out", "t", *NET)
    steps = ("--start", 16, "--stop", 4, "--guidance-range", 1, 3, "--halving-updates", 2)
    cli("distill", "guided", "--teacher", "t", "--out", "g", *few, *steps, "--tolerance", 0)
    look = (
        "--features",
        "tests.support.latent_runs:pixels",
        "--samples",
        16,
        "--guidance-scales",
        1,
        2,
    )
    cli("evaluate", "g", *look, "--baselines", "ddim", "--cost-rounds", 0, "--device", "cpu")
    guided = json.loads((tmp_path / "g" / "report.json").read_text())["guided"]
    rows = [(row["guidance_scale"], row["role"], row["steps"]) for row in guided["rows"]]
    assert [row[1:] for row in rows if row[0] == 2][1:] == [("student", 8), ("student", 4)]


@pytest.mark.parametrize("name", ["uvit", "unet-condition"])
def test_texts_lead_away_from_the_empty_one(name, tmp_path):
    """diffusers' text U-Net hears the scale by timestep_cond; the null is the empty text's states."""
    data = replace(latents(texts=True), labels=None, names=())
    sides = {"in_channels": 2, "sample_size": 4, "cross_attention_dim": WIDTH}
    if name == "uvit":
        sides = {"in_chans": 2, "img_size": 4, "clip_dim": WIDTH, "num_clip_token": TOKENS}
    torch.manual_seed(0)
    net = build(name, TINY[name] | sides)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    teacher = Pipeline(Denoiser(net, Cosine(), V()), (2, 4, 4), **defaults_of(data.null_context))
    method = GuidedDistillation(
        guidance_range=(1.0, 4.0),
        updates=3,
        guidance_embed_dim=8,
        halving=Progressive(start=16, stop=4, updates=(2,)),
    )
    first = next(method.stages(DenoiserOnly(teacher.denoiser, teacher.unconditional)))
    batch = data.batch(torch.arange(3))
    t, scale = torch.tensor([0.2, 0.6, 1.0]), torch.tensor([1.0, 2.0, 4.0])
    cond = replace(batch.cond, guidance_scale=scale)
    assert torch.equal(first.objective.null, data.null_context.encoder_hidden_states[0])
    assert torch.equal(
        first.student(batch.x0, t, cond).x0, teacher.denoiser(batch.x0, t, batch.cond).x0
    )
    student = distill(
        teacher,
        data,
        tmp_path / "r",
        method=method,
        training=TrainingConfig(batch_size=4),
        job=job(),
    )
    assert recipe(student.denoiser.net)[1][
        "guidance_embed_dim"
    ] == 8 and student.guidance_range == (1.0, 4.0)
    states = batch.cond.encoder_hidden_states[:2]
    x = [
        student.sample(2, encoder_hidden_states=states, guidance_scale=scale)
        for scale in (1.0, 4.0, 4.0)
    ]
    assert x[0].shape == (2, 2, 4, 4) and torch.equal(x[1], x[2])
    assert not torch.equal(x[0], x[1])
    assert not torch.equal(x[1], student.sample(2, guidance_scale=4.0))  # of the empty text
    loaded = Pipeline.load(tmp_path / "r" / "stages" / "0004-steps")
    assert torch.equal(loaded.sample(2, encoder_hidden_states=states, guidance_scale=4.0), x[1])


@pytest.mark.slow
def test_reparameterised_it_meets_the_exact_v_at_pure_noise():
    """Where alpha = 0, v is minus the mean of the data, and eps would say nothing: within 1e-2, by label."""
    torch.manual_seed(0)
    table = BetaTable(levels=4, beta_end=0.9)
    teacher = mixture_teacher(table, parameterisation=Eps())
    [stage] = Reparameterise(zero_snr=True).stages(DenoiserOnly(teacher))
    schedule, config = stage.objective.schedule, {"dim": 2, "num_classes": 4, "depth": 2}
    student = Denoiser(build("mlp", config), schedule, V())
    fit(student, stage.objective, updates=3000, rate=4e-3, rng=seeded())
    x, t = torch.randn(3000, 2, generator=seeded(4)), torch.ones(3000, dtype=torch.float64)
    _, cond = labelled_points(3000)
    expected = mixture_teacher(schedule)(x, t, cond).x0
    assert torch.equal(expected, torch.tensor(DATA.means)[cond.label])
    with torch.no_grad():
        assert rms(student(x, t, cond).x0, expected) < 1e-2  # alpha = 0: minus v
