"""Smaller students: one regression for output and denoising, normalised features, plans that go on."""

import json
from dataclasses import replace

import pytest
import torch

from halfstep import storage
from halfstep.batch import Batch
from halfstep.data import Dataset
from halfstep.diffusion.denoiser import Denoiser, level_of
from halfstep.diffusion.guidance import Guided
from halfstep.diffusion.loss_weighting import WEIGHTINGS
from halfstep.diffusion.prediction import Prediction, V
from halfstep.diffusion.schedules import BetaTable, Cosine, Level
from halfstep.errors import ConfigError
from halfstep.methods import Chain, DenoiserOnly, GuidedDistillation, METHODS, Progressive, Shrink
from halfstep.methods.base import errors
from halfstep.methods.diffusion.block_features import feature_error, Matched
from halfstep.methods.diffusion.chain import ChainOptions
from halfstep.methods.diffusion.guided import AnyScale
from halfstep.methods.diffusion.imitation import mixed_target
from halfstep.models import build, recipe
from halfstep.models.hooks import unwrap
from halfstep.pipeline import Pipeline
from halfstep.rng import Draw
from halfstep.training import distill, TrainingConfig
from halfstep.training.api import resolve, stages_of
from tests.support.denoisers import seeded
from tests.support.networks import nothing, UNET
from tests.support.progress import Ledger
from tests.support.runs import At, bits, Crash, crash, job, rewritten

SIDES = {
    "img_size": 4,
    "patch_size": 2,
    "in_chans": 1,
    "embed_dim": 8,
    "num_heads": 2,
    "num_classes": 4,
}
TRAINING = TrainingConfig(
    batch_size=8, learning_rate=3e-3, ema=0.9, save_every=2, log_every=4, seed=5
)
NULL = 3


def teacher(depth=4, guidance_range=None, **changes):
    """A U-ViT with weights large enough to say something."""
    torch.manual_seed(depth)
    config = {**SIDES, "depth": depth, "guidance_embed_dim": 6 if guidance_range else 0, **changes}
    net = build("uvit", config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)
    denoiser = Denoiser(net, Cosine(), V())
    return Pipeline(
        denoiser, (1, 4, 4), class_names=("a", "b", "c"), null=NULL, guidance_range=guidance_range
    )


def data(n=48):
    values = torch.rand(n, 1, 4, 4, generator=seeded(3), dtype=torch.float64) * 2 - 1
    return Dataset(values.float(), torch.arange(n) % 3, ("a", "b", "c"))


def batch(n=6, dtype=torch.float64):
    images = data(n).batch(torch.arange(n))
    return Batch(images.x0.to(dtype), images.cond)


def draw(n=6, seed=1):
    return Draw.all(seeded(seed), n)


# --- the loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_output_and_denoising_are_one_regression(weighting):
    """a e(f, T) + b e(f, D) = (a + b) e(f, mixed) + ab / (a + b) e(T, D), in value and gradient."""
    a, b, weigh = 0.9, 0.35, WEIGHTINGS[weighting]
    level = Level(torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64))
    x_t = torch.randn(5, 2, 3, generator=seeded(), dtype=torch.float64)
    teacher_pred, truth, guess = (
        V().decode(torch.randn(5, 2, 3, generator=seeded(k), dtype=torch.float64), x_t, level)
        for k in (1, 2, 3)
    )
    out = torch.randn(5, 2, 3, generator=seeded(3), dtype=torch.float64, requires_grad=True)
    guess = V().decode(out, x_t, level)
    two = a * weigh(*errors(guess, teacher_pred)) + b * weigh(*errors(guess, truth))
    mixed = mixed_target(teacher_pred, truth, share=b / (a + b))
    one = (a + b) * weigh(*errors(guess, mixed))
    gap = a * b / (a + b) * weigh(*errors(teacher_pred, truth))
    assert torch.allclose(two, one + gap, rtol=0, atol=1e-13)
    (ours,) = torch.autograd.grad(one.sum(), out, retain_graph=True)
    (slope_of_two,) = torch.autograd.grad(two.sum(), out)
    assert torch.allclose(ours, slope_of_two, rtol=0, atol=1e-13)
    assert torch.allclose(level.mix(mixed.x0, mixed.eps), x_t, rtol=0, atol=1e-13)


def test_what_the_space_of_the_error_weighs():
    """MSE in x0 over MSE in eps, and in v over eps, at alpha .6 and sigma .8 (fact F29)."""
    alpha, sigma = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64)
    level, x_t = Level(alpha, sigma), torch.randn(4, 3, generator=seeded(), dtype=torch.float64)
    outs = [torch.randn(4, 3, generator=seeded(k), dtype=torch.float64) for k in (1, 2)]
    x_err, eps_err = errors(*(V().decode(out, x_t, level) for out in outs))
    v_err = (outs[0] - outs[1]).square().mean(1)
    assert (x_err / eps_err).tolist() == pytest.approx([1.77777777777778] * 4, rel=1e-10)
    assert (v_err / eps_err).tolist() == pytest.approx([2.77777777777778] * 4, rel=1e-10)
    assert torch.allclose(WEIGHTINGS["snr+1"](x_err, eps_err), v_err, rtol=1e-10)


def test_features_count_alike_whatever_their_scale():
    f, g = (torch.randn(3, 5, 4, generator=seeded(k), dtype=torch.float64) for k in (1, 2))
    error = feature_error(g, f)
    assert torch.allclose(error, ((g - f) ** 2).mean((1, 2)) / (f**2).mean((1, 2)), rtol=1e-12)
    assert torch.allclose(feature_error(30 * g, 30 * f), error, rtol=1e-12)
    assert torch.equal(feature_error(f, f), torch.zeros(3, dtype=torch.float64))
    assert torch.allclose(feature_error(0 * f, f), torch.ones(3, dtype=torch.float64))
    assert feature_error(g.half(), f.half()).dtype == torch.float32


def test_the_mask_leaves_out_what_is_far_from_the_mean_of_the_teachers_sample():
    f = torch.zeros(2, 100, dtype=torch.float64)
    f[:, ::2] = 1.0
    f[0, 0] = 50.0  # an outlier of the first sample
    g = f.clone()
    g[:, 0] += 10.0
    plain, masked = feature_error(g, f), feature_error(g, f, mask=2.0)
    assert plain.min() > 0 and masked[0] == 0 and masked[1] == plain[1]


def imitating(pipeline, **changes):
    method = Shrink(keep=(0,), **{"drop_labels": 0.5, **changes})
    return next(method.stages(DenoiserOnly(pipeline.denoiser.double(), NULL)))


@pytest.mark.parametrize("denoising", [0.0, 0.3])
def test_a_student_that_is_the_teacher_loses_nothing_of_it(denoising):
    """Same noise, time and dropped labels for both: with pairs that do nothing the errors are zero."""
    pipeline = teacher()
    nothing(pipeline.denoiser.net, 1)
    stage = imitating(pipeline, denoising=denoising)
    # its in-block stands for both, the middle one for itself and the first out-block
    loss = stage.objective(stage.student, batch(), draw())
    if not denoising:
        assert loss.abs().max() < 1e-24
    terms = stage.objective.measure(stage.student, batch(), draw())["terms"]
    assert terms["output"] < 1e-24 and terms["features"] < 1e-24 and terms["denoising"] > 0.01


def test_the_loss_is_what_it_says():
    pipeline = teacher()
    stage = imitating(
        pipeline, output=0.7, denoising=0.2, feature_weight=0.4, weighting="snr+1", drop_labels=0.0
    )
    terms = stage.objective.measure(stage.student, batch(), draw())["terms"]
    loss = stage.objective(stage.student, batch(), draw()).detach()
    rng = draw()
    t, eps = rng.uniform(), rng.normal(batch().x0)
    x_t = level_of(Cosine(), t, batch().x0).mix(batch().x0, eps)
    teacher_pred = pipeline.denoiser(x_t, t, batch().cond)
    gap = WEIGHTINGS["snr+1"](*errors(teacher_pred, Prediction(batch().x0, eps))).mean()
    total = 0.7 * terms["output"] + 0.2 * terms["denoising"] + 0.4 * terms["features"]
    assert float(loss.mean() + 0.7 * 0.2 / 0.9 * gap) == pytest.approx(total, rel=1e-9)
    assert terms["features"] > 0


def test_labels_are_dropped_for_both_and_for_as_many_as_asked():
    pipeline, labels = teacher(), []
    pipeline.denoiser.net.register_forward_pre_hook(
        lambda net, arguments: labels.append(arguments[2].label)
    )
    stage = imitating(pipeline, drop_labels=0.5)
    stage.student.net.register_forward_pre_hook(
        lambda net, arguments: labels.append(arguments[2].label)
    )
    stage.objective(stage.student, batch(40), draw(40))
    assert torch.equal(labels[0], labels[-1]) and 5 < (labels[0] == NULL).sum() < 35


def test_tokens_of_time_and_label_are_not_compared():
    matched = imitating(teacher()).objective.matched
    student, teacher_out = (
        torch.randn(3, 6, 8, generator=seeded(k), dtype=torch.float64) for k in (1, 2)
    )
    errors, other = matched.errors([student] * 3, [teacher_out] * 3), student.clone()
    other[:, :2] += 7
    assert torch.equal(matched.errors([other] * 3, [teacher_out] * 3), errors)
    other[:, 2] += 7
    assert not torch.equal(matched.errors([other] * 3, [teacher_out] * 3), errors)


def test_only_the_student_learns():
    pipeline = teacher()
    stage = imitating(pipeline)
    stage.objective(stage.student, batch(), draw()).sum().backward()
    grads = {name: p.grad for name, p in stage.student.named_parameters()}
    assert all(grad is not None for grad in grads.values())
    assert all(p.grad is None and not p.requires_grad for p in pipeline.denoiser.parameters())


# --- whom it shrinks, and to what ---------------------------------------------------------------------


def test_guided_teachers_and_those_that_take_a_scale():
    pipeline = teacher()
    guided = Guided(pipeline.denoiser.double(), 2.5, NULL)
    stage = next(Shrink(keep=(1,), drop_labels=0).stages(DenoiserOnly(guided, NULL)))
    assert stage.objective.denoising == 0  # the data are no guided images
    terms = stage.objective.measure(stage.student, batch(), draw())["terms"]
    assert 0 < terms["features"] < 10
    rng = draw()
    t, eps = rng.uniform(), rng.normal(batch().x0)
    x_t = level_of(Cosine(), t, batch().x0).mix(batch().x0, eps)
    with torch.no_grad():
        guided_pred, guess = guided(x_t, t, batch().cond), stage.student(x_t, t, batch().cond)
    assert terms["output"] == pytest.approx(
        float(WEIGHTINGS["truncated-snr"](*errors(guess, guided_pred)).mean()), rel=1e-9
    )
    scaled = teacher(guidance_range=(1.0, 3.0))
    stage = next(stages_of(Shrink(keep=(1,)), scaled, scaled.denoiser.double()))
    assert isinstance(stage.objective, AnyScale) and stage.guidance_range == (1.0, 3.0)
    assert stage.objective.objective.denoising == 0
    assert recipe(stage.student.net)[1]["guidance_embed_dim"] == 6
    assert torch.isfinite(stage.objective(stage.student, batch(), draw())).all()


def test_a_narrower_student_begins_untrained():
    stage = next(Shrink(student={"embed_dim": "4"}).stages(DenoiserOnly(teacher().denoiser, NULL)))
    assert stage.objective.matched.projectors
    assert recipe(unwrap(stage.student).net)[1]["embed_dim"] == 4
    again = next(Shrink(student={"embed_dim": "4"}).stages(DenoiserOnly(teacher().denoiser, NULL)))
    assert all(map(torch.equal, stage.student.parameters(), again.student.parameters()))
    both = next(
        Shrink(depth=2, student={"embed_dim": "4"}).stages(DenoiserOnly(teacher().denoiser, NULL))
    )
    assert recipe(unwrap(both.student).net)[1]["depth"] == 2
    thin = next(Shrink(student={"mlp_ratio": "1"}).stages(DenoiserOnly(teacher().denoiser, NULL)))
    assert thin.objective.matched is not None and not thin.objective.matched.projectors
    other = next(
        Shrink(student={"patch_size": "4", "embed_dim": "4"}).stages(
            DenoiserOnly(teacher().denoiser, NULL)
        )
    )
    assert other.objective.matched is None


@pytest.mark.parametrize(
    ("name", "options", "width"),
    [("uvit", {"embed_dim": "4"}, 4), ("unet", {"block_out_channels": "[4, 8]"}, 4)],
)
def test_features_of_a_narrower_student_are_compared_through_projectors(name, options, width):
    old = teacher().denoiser if name == "uvit" else Denoiser(build("unet", UNET), Cosine(), V())
    old, shape = old.double(), batch().x0.shape if name == "uvit" else (3, 1, 8, 8)
    shrink = Shrink(student=options, feature_weight=0.5)
    stage = next(shrink.stages(DenoiserOnly(old, NULL if name == "uvit" else None)))
    projectors = stage.objective.matched.projectors
    assert len(projectors) == len(stage.objective.matched.student)
    assert projectors[0].weight.shape[1] == width
    assert set(map(id, projectors)) == set(map(id, stage.student.projectors))
    x = torch.randn(shape, dtype=torch.float64, generator=seeded())
    inputs = Batch(x, batch().cond if name == "uvit" else None)
    for p in stage.student.projectors.parameters():
        p.data.zero_()
    terms = stage.objective.measure(stage.student, inputs, draw(len(x)))["terms"]
    assert terms["features"] == pytest.approx(1)  # nothing, over the teacher's own energy
    stage.objective(stage.student, inputs, draw(len(x))).sum().backward()
    assert all(p.grad is not None for p in stage.student.parameters())
    assert not any(p.grad is not None for p in old.parameters())


def test_projectors_are_trained_resumed_and_left_out_of_what_is_saved(tmp_path):
    method = Chain(
        shrink=Shrink(student={"embed_dim": "4"}, feature_weight=0.5, updates=6),
        then=Progressive(start=2, stop=1, updates=(2,)),
    )

    def made(out, **options):
        ours = job(**options)
        return distill(teacher(), data(), out, method=method, training=TRAINING, job=ours)

    made(tmp_path / "whole")
    with pytest.raises(Crash):
        made(tmp_path / "cut", callback=At("shrunk", 5, crash))
    checkpoint_file = sorted((tmp_path / "cut" / "checkpoints").glob("*.safetensors"))[-1]
    assert any("projectors" in name for name in storage.load(checkpoint_file.with_suffix(""))[0])
    made(tmp_path / "cut")
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")
    saved = tmp_path / "whole" / "stages" / "shrunk"
    assert not any("projectors" in name for name in storage.load(saved / "pipeline")[0])
    assert Pipeline.load(saved).shape == teacher().shape


def test_a_unet_of_fewer_layers():
    denoiser = Denoiser(build("unet", UNET), Cosine(), V()).double()
    stage = next(Shrink(student={"layers_per_block": "1"}).stages(DenoiserOnly(denoiser)))
    assert len(stage.objective.matched.student) == 5 and stage.objective.drop == 0
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64, generator=seeded())
    terms = stage.objective.measure(stage.student, Batch(x), draw(3))["terms"]
    assert 0 < terms["features"] < 10
    narrow = next(Shrink(student={"block_out_channels": "[8, 8]"}).stages(DenoiserOnly(denoiser)))
    assert narrow.objective.matched.projectors


def test_tables_are_asked_at_their_levels():
    denoiser = teacher().denoiser
    assert (
        next(Shrink(keep=(0,), levels=4).stages(DenoiserOnly(denoiser, NULL))).objective.levels == 4
    )
    denoiser.schedule = BetaTable(levels=10)
    assert next(Shrink(keep=(0,)).stages(DenoiserOnly(denoiser, NULL))).objective.levels == 10


HALVING = Progressive(start=8, stop=2, updates=(3,))
GUIDED = GuidedDistillation(
    guidance_range=(1.0, 3.0), updates=3, guidance_embed_dim=6, halving=HALVING
)
PLAN = Chain(shrink=Shrink(keep=(0,), updates=5), then=GUIDED)

REFUSED = [
    ({}, "not smaller"),
    ({"depth": 3}, "blocks are left out in pairs"),
    ({"depth": 2, "keep": (0, 1)}, "which is depth 4"),
    ({"depth": 2, "student": {"depth": "2"}}, "depth is given twice"),
    ({"depth": 2, "output": 0.0, "denoising": 0.0}, "both 0"),
    ({"depth": 2, "feature_weight": -1.0}, "feature_weight"),
    ({"depth": 2, "weighting": "none"}, "weighting"),
    ({"depth": 2, "drop_labels": 2.0}, "drop_labels"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED)
def test_options_that_cannot_be(options, words):
    with pytest.raises(ConfigError) as error:
        Shrink(**options)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (
            Shrink(depth=4),
            "no shallower than its teacher of depth 4: write an even number from 2 to 2",
        ),
        (Shrink(keep=(0, 1)), "nothing would get smaller"),
        (Shrink(keep=(2,)), "0 (outermost) to 1"),
        (Shrink(student={"embed_dim": "16"}), "ask for fewer in student"),
        (
            Shrink(student={"patch_size": "4", "embed_dim": "4"}, feature_weight=0.5),
            "write feature_weight=0",
        ),
        (Shrink(keep=(0,), drop_labels=0.1), "write drop_labels=0"),
        (Chain(shrink=Shrink(keep=(0,)), then=GUIDED), "null class"),
    ],
)
def test_teachers_that_cannot_be(method, words, tmp_path):
    pipeline = replace(teacher(), null=None)
    with pytest.raises(ConfigError) as error:
        distill(pipeline, data(), tmp_path / "run", method=method, training=TRAINING, job=job())
    assert words in str(error.value) and not (tmp_path / "run").exists()


def test_guided_teachers_are_not_drawn_to_the_data():
    scaled = teacher(guidance_range=(1.0, 3.0))
    with pytest.raises(ConfigError, match="write denoising=0"):
        Shrink(keep=(1,), denoising=0.1).check(scaled)
    with pytest.raises(ConfigError, match="as an input already"):
        replace(PLAN, shrink=Shrink(keep=(1,))).check(scaled)
    student = replace(teacher(), times=((1.0, 0.5, 0.0),))
    with pytest.raises(ConfigError, match="student of 2"):
        Shrink(keep=(1,)).check(student)


def test_the_score_is_measured_on_data_and_kept():
    pipeline, ledger = teacher(depth=8), Ledger()
    nothing(pipeline.denoiser.net, 2)
    method = Shrink(depth=6, updates=1, denoising=0.0)
    with pytest.raises(ConfigError, match="on data"):
        next(method.stages(DenoiserOnly(pipeline.denoiser, NULL)))
    rises = method.scores(pipeline, data(), progress=ledger)
    assert ledger.steps == (1 + 4) * -(-min(512, len(data())) // 64)
    assert abs(rises[2]) < 1e-6 and min(rises) == rises[2]
    assert resolve(method, pipeline, data()).keep == (0, 1, 3)
    assert resolve(replace(method, choose="even"), pipeline, data()).keep == ()
    even = replace(method, choose="even").kept_pairs(pipeline.denoiser.net)
    assert even == (0, 1, 2)


def test_the_score_is_measured_on_rows_from_all_of_the_data(monkeypatch):
    """Data that lies class by class: the first rows would be of one class."""
    monkeypatch.setattr("halfstep.methods.diffusion.block_scores.ROWS", 6)
    monkeypatch.setattr("halfstep.methods.diffusion.block_scores.BATCH", 4)
    whole, rows_read = data(), []

    class Noted(type(whole)):
        def training_batch(self, rows, draw):
            rows_read.append(rows.tolist())
            return super().training_batch(rows, draw)

    noted, n = Noted(**vars(whole)), len(whole)
    Shrink(depth=6, updates=1, denoising=0.0).scores(teacher(depth=8), noted)
    spread = [k * n // 6 for k in range(6)]
    assert (
        n > 12 and rows_read == [spread[:4], spread[4:]] * 5
    )  # of the whole network, and without each pair


# --- plans --------------------------------------------------------------------------------------------


STAGES = ["0002-steps", "0004-steps", "guided", "shrunk"]


def run(out, method=PLAN, **options):
    return distill(teacher(), data(), out, method=method, training=TRAINING, job=job(**options))


def test_a_plan_is_its_parts_one_after_the_other(tmp_path):
    student = run(tmp_path / "plan")
    assert sorted(path.name for path in (tmp_path / "plan/stages").iterdir()) == STAGES
    assert student.guidance_range == (1.0, 3.0) and len(student.times[0]) == 3
    assert recipe(student.denoiser.net)[1]["depth"] == 2
    small = Pipeline.load(tmp_path / "plan/stages/shrunk")
    assert small.guidance_range is None and not small.times
    assert small.sample(3, steps=2, guidance_scale=2.0).shape == (3, 1, 4, 4)
    # and the shrinking alone gives the same weights
    alone = run(tmp_path / "alone", PLAN.shrink)
    assert all(map(torch.equal, alone.denoiser.parameters(), small.denoiser.parameters()))
    assert json.loads((tmp_path / "plan/run.json").read_text())["command"] == "distill plan"


def test_without_guidance_it_shrinks_and_halves(tmp_path):
    student = run(tmp_path / "run", replace(PLAN, then=HALVING))
    names = sorted(path.name for path in (tmp_path / "run/stages").iterdir())
    assert names == ["0002-steps", "0004-steps", "shrunk"] and student.guidance_range is None


@pytest.mark.parametrize(
    "where", [("shrunk", 3), ("guided", 3), ("0004-steps", 1), ("0002-steps", 3)]
)
def test_a_plan_goes_on_to_the_bit(where, tmp_path, whole):
    out = tmp_path / "run"
    with pytest.raises(Crash):
        run(out, callback=At(*where, crash))
    run(out)
    assert bits(out) == whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("plan") / "run"
    run(out)
    return bits(out)


def test_a_begun_run_keeps_the_pairs_it_was_begun_with(tmp_path):
    method = Shrink(depth=2, updates=2)
    run(tmp_path / "run", method)
    keep = json.loads((tmp_path / "run/run.json").read_text())["options"]["keep"]
    assert len(keep) == 1
    other = {"keep": [1 - keep[0]]}  # as if the data had said so then
    rewritten(tmp_path / "run/run.json", lambda content: content["options"].update(other))
    assert resolve(method, teacher(), data(), tmp_path / "run").keep == (1 - keep[0],)


def test_a_begun_chain_keeps_them_too(tmp_path):
    chain = Chain(
        shrink=Shrink(depth=2, updates=2), then=Progressive(start=2, stop=1, updates=(1,))
    )
    run(tmp_path / "run", chain)
    keep = json.loads((tmp_path / "run/run.json").read_text())["options"]["shrink"]["keep"]
    other = {"keep": [1 - keep[0]]}
    rewritten(tmp_path / "run/run.json", lambda content: content["options"]["shrink"].update(other))
    resolved = resolve(chain, teacher(), data(), tmp_path / "run")
    assert resolved.shrink.keep == (1 - keep[0],) and resolved.then == chain.then


def test_it_is_among_the_methods():
    assert METHODS["shrink"] is Shrink and METHODS["plan"] is Chain
    with pytest.raises(ConfigError, match="vanishes"):
        ChainOptions(depth=2, weighting="snr")
    with pytest.raises(ConfigError, match="from 6 to 4"):
        ChainOptions(depth=2, start=6, stop=4)
    with pytest.raises(ConfigError, match="from 4 to 4"):
        ChainOptions(depth=2, start=4, stop=4)
    with pytest.raises(ConfigError, match="guided_updates"):
        ChainOptions(depth=2, guided_updates=3)


def test_a_chain_of_flat_options_is_its_parts():
    flat = {"start": 8, "stop": 2, "halving_updates": (3,)}
    guided = {"guidance_range": (1.0, 3.0), "guided_updates": 3, "guidance_embed_dim": 6}
    made = ChainOptions(keep=(0,), updates=5, weighting="snr+1", levels=4, **flat, **guided).build()
    halving = replace(HALVING, weighting="snr+1")
    assert made == Chain(
        shrink=Shrink(keep=(0,), updates=5, weighting="snr+1", levels=4),
        then=replace(GUIDED, weighting="snr+1", levels=4, halving=halving),
    )
    assert ChainOptions(depth=2, **flat).build() == Chain(shrink=Shrink(depth=2), then=HALVING)


def test_features_of_a_guided_teacher_are_those_with_the_label():
    """A guided teacher asks with labels and without in one batch, those with first."""
    made = seeded()
    ours, labelled, unlabelled = (torch.randn(3, 5, 4, generator=made) for _ in range(3))
    errors = Matched((), (), 1, 1.0).errors([ours], [torch.cat([labelled, unlabelled])])
    torch.testing.assert_close(errors, feature_error(ours[:, 1:], labelled[:, 1:]))
