"""Does a test notice?  One-token mutants of the formulas, each of which some test must kill.

    python -m tests.mutants [--only NAME] [--list]

Works on copies in a temporary folder, two at a time.  First the tests must pass without a mutant; then
each mutant's tests must fail with it.  Exits with 1 if any survives, or if its text is no longer there.
A new formula brings its mutants: add them to `MUTANTS`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).parents[1]
WORKERS = 2


@dataclass(frozen=True)
class Mutant:
    """`old`, which occurs once in `file`, becomes `new`; one of the tests must fail."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """file:old, on one line."""
        return f"{self.file}: {' '.join(self.old.split())}  ->  {' '.join(self.new.split())}"

    def applied(self, source: str) -> str:
        """The mutated source; ValueError unless `old` occurs exactly once."""
        if (count := source.count(self.old)) != 1:
            raise ValueError(f"{self.file} has {count} times, and not once: {self.old}")
        return source.replace(self.old, self.new)


def _of(file: str, tests: str, *changes: tuple[str, str]) -> tuple[Mutant, ...]:
    files = tuple(f"tests/test_{name}.py" for name in tests.split())
    return tuple(Mutant(f"halfstep/{file}.py", old, new, files) for old, new in changes)


MUTANTS = (
    *_of(
        "schedules",
        "schedules",
        (
            "return 2 * (self.alpha.log() - self.sigma.log())",
            "return self.alpha.log() - self.sigma.log()",
        ),
        ("landed = schedule.at(t), t == 0", "landed = schedule.at(t), t < 0"),
        (
            "torch.where(landed, torch.zeros_like(level.sigma)",
            "torch.where(landed, torch.ones_like(level.sigma)",
        ),
        ("return self.alpha * x0 + self.sigma * eps", "return self.alpha * x0 - self.sigma * eps"),
        ("atan(exp(-self.logsnr_max / 2))", "atan(exp(-self.logsnr_max))"),
        ("atan(exp(-self.logsnr_min / 2)) - self.b", "atan(exp(-self.logsnr_min / 2)) + self.b"),
        ("angle = self.a * t + self.b", "angle = self.a * t"),
        (".atan() - self.b) / self.a", ".atan() + self.b) / self.a"),
        ("(self.beta_max - self.beta_min) / 2 * t**2", "(self.beta_max - self.beta_min) * t**2"),
        ("(log_alpha2 / 2).exp()", "log_alpha2.exp()"),
        ("return 2 * c / ", "return c / "),
        ("self.beta_min**2 + 2 * slope * c", "self.beta_min**2 + slope * c"),
        ("return Level(1 - t, t)", "return Level(1 - t, 1 - t)"),
        ("return (-logsnr / 2).sigmoid()", "return (-logsnr).sigmoid()"),
        ("(low + t * (high - low)) ** self.rho", "(high + t * (low - high)) ** self.rho"),
        ("(-logsnr / (2 * self.rho)).exp()", "(-logsnr / self.rho).exp()"),
        ("t * self.levels - 1", "t * self.levels"),
        ("low + share * (high - low), low)", "high + share * (low - high), low)"),
        ("(share > 0, low", "(share >= 0, low"),
        ("share, n = place - below, below.long()", "share, n = place - below, below.long() + 1"),
        ("dtype=torch.float64) ** 2", "dtype=torch.float64) ** 1"),
        ("(t + 0.008) / 1.008", "(t + 0.08) / 1.08"),
        ("clamp(max=0.999)", "clamp(max=0.99)"),
        (".cumsum(0).div(2).exp()", ".cumsum(0).exp()"),
        ("(alpha - alpha[-1]) * alpha[0] /", "(alpha - alpha[-1]) /"),
        ("2 * alpha.log() - torch.log1p(-(alpha**2))", "2 * alpha.log() - torch.log1p(-alpha)"),
    ),
    *_of(
        "prediction",
        "prediction",
        ("(x_t - level.alpha * x0) / level.sigma", "(x_t - level.alpha * x0) / level.alpha"),
        ("(x_t - level.sigma * eps) / level.alpha", "(x_t + level.sigma * eps) / level.alpha"),
        ("(level.sigma == 0).any()", "(level.sigma == 0).all()"),
        ("(level.alpha == 0).any()", "(level.alpha == 0).all()"),
        ("self.x0 + scale * (other.x0 - self.x0)", "other.x0 + scale * (other.x0 - self.x0)"),
        ("self.eps + scale * (other.eps - self.eps)", "self.eps - scale * (other.eps - self.eps)"),
        ("self.x0.clamp(-bound, bound)", "self.x0.clamp(0, bound)"),
        (
            "(level.alpha * x_t - level.sigma * out) / norm",
            "(level.alpha * x_t + level.sigma * out) / norm",
        ),
        ("(level.sigma * x_t + level.alpha * out) / norm", "level.sigma * x_t + level.alpha * out"),
        (
            "level.alpha * pred.eps - level.sigma * pred.x0",
            "level.alpha * pred.x0 - level.sigma * pred.eps",
        ),
        (
            "(x_t - level.sigma * out) / (level.alpha + level.sigma)",
            "(x_t - level.sigma * out) / (level.alpha)",
        ),
        ("Prediction(x0, x0 + out)", "Prediction(x0, x0 - out)"),
        ("out.chunk(2, dim=1)", "out.chunk(2, dim=-1)"),
        ("(sigma**2 * o_x + alpha", "(alpha**2 * o_x + alpha"),
        ("alpha * o_x) + alpha**2 * o_eps) / norm", "alpha * o_x) + sigma**2 * o_eps) / norm"),
        ("blind_to_data: ClassVar[bool] = True", "blind_to_data: ClassVar[bool] = not True"),
    ),
    *_of(
        "weighting",
        "weighting",
        ("torch.maximum(x_err, eps_err)", "torch.minimum(x_err, eps_err)"),
        ("torch.minimum(gamma * x_err, eps_err)", "torch.minimum(x_err, eps_err)"),
        ("gamma: float = 5.0", "gamma: float = 4.0"),
        ("return x_err + eps_err", "return x_err"),
        ("float(weighting(one, 0 * one))", "float(weighting(0 * one, one))"),
    ),
    *_of(
        "timegrids",
        "timegrids",
        ("a > b for a, b", "a >= b for a, b"),
        ("or times[0] > 1 or", "or times[0] >= 1 or"),
        ("times[-1] < 0", "times[-1] <= 0"),
        ("round(levels - k", "int(levels - 1 - k"),
        ("/ max(steps - 1, 1)", "/ max(steps, 1)"),
        ("power=1 / rho", "power=rho"),
        ("(-ends / 2 * power).exp()", "(-ends * power).exp()"),
        ("-2 / power * (low", "-1 / power * (low"),
        ("low + share * (high - low)", "low + share * (high + low)"),
        ("ends[0] + share * (ends[1] - ends[0])", "ends[1] + share * (ends[0] - ends[1])"),
    ),
    *_of(
        "noise",
        "noise",
        ("SeedSequence(parts)", "SeedSequence(sum(parts))"),
        ("shape = self.whole, *like.shape[1:]", "shape = len(like), *like.shape[1:]"),
        ("torch.randint(n, (self.whole,)", "torch.randint(n - 1, (self.whole,)"),
        ("[seed, k]", "[seed, 0]"),
        ("counter=[0, 0, 0, step]", "counter=[step, 0, 0, 0]"),
    ),
    *_of(
        "batch",
        "noise",
        ("torch.cat([a, b])", "torch.cat([b, a])"),
        ("(mine is None) != (theirs is None)", "(mine is None) == (theirs is None)"),
    ),
    *_of(
        "denoiser",
        "denoiser",
        ("self.scale * value + self.offset", "self.scale * value - self.offset"),
        ("clamp(-20, 20)", "clamp(-20, 10)"),
        ("schedule.at(t.reshape(", "schedule.at(t.to(x.dtype).reshape("),
        ("decode(out.to(x_t.dtype)", "decode(out"),
        ("copy.deepcopy(self).train()", "copy.copy(self).train()"),
        ("self.scale == 1", "self.scale == 0"),
        ("t.repeat(2)", "t.repeat_interleave(2)"),
        ("(x0_label, x0_null), (eps_label", "(x0_null, x0_label), (eps_label"),
        ("cond.cat(cond.without(self.null))", "cond.without(self.null).cat(cond)"),
        (
            "pred.eps - self.scale * level.sigma * gradient",
            "pred.eps + self.scale * level.sigma * gradient",
        ),
        ("pred.eps - self.scale * level.sigma", "pred.eps - self.scale * level.alpha"),
    ),
    *_of(
        "testing",
        "testing",
        ("away.square().sum(-1) / (2 * spread)", "away.square().sum(-1) / spread"),
        ("flat.shape[1] / 2 * spread.log()", "flat.shape[1] * spread.log()"),
        ("there.alpha * mean + wanted / spread", "there.alpha * mean + spread / wanted"),
        ("(x - here.alpha * mean)", "(x - there.alpha * mean)"),
    ),
    *_of(
        "samplers/steps",
        "samplers",
        ("seen[-1].pred.x0, seen[-1].pred.eps", "seen[-1].pred.x0, seen[0].pred.eps"),
        ("look(first, to).pred.x0", "look(x, to).pred.x0"),
        ("new.x0 + h / h_before / 2", "new.x0 + h_before / h / 2"),
        ("h_before / 2 * (new.x0 - old.x0)", "h_before / 2 * (old.x0 - new.x0)"),
        ("if len(seen) == 1 or to.level.sigma == 0", "if len(seen) <= 2 or to.level.sigma == 0"),
        ("to.alpha - here.alpha * shrink", "to.alpha - shrink"),
        ("shrink = to.sigma / here.sigma", "shrink = to.alpha / here.alpha"),
        ("(1 - r) * to.level.alpha * x0", "(1 - root) * to.level.alpha * x0"),
        ("(1 - r).sqrt() * spread", "(1 - root).sqrt() * spread"),
        ("to.level.sigma ** (1 - variance) * here", "to.level.sigma ** (1 + variance) * here"),
        ("root = here.alpha * to.level.sigma", "root = to.level.alpha * to.level.sigma"),
        ("fresh(x, to.step)", "fresh(x, 0)"),
    ),
    *_of(
        "samplers/walk",
        "samplers",
        ("schedule.at(_time(t)).sigma * noise", "noise"),
        ("2 * steps - 1 if step", "2 * steps if step"),
        ("seen = [*seen[-2:], look(x, here)]", "seen = [*seen[:2], look(x, here)]"),
        ("pred.clipped(x, point.level, clip)", "pred.clipped(x, point.level)"),
        ("arriving(schedule, _time(then))", "schedule.at(_time(then))"),
        ("enumerate(pairwise(times), start=1)", "enumerate(pairwise(times), start=0)"),
        (".to(noise.dtype)", ".to(torch.float64)"),
        ("pred = denoiser(x, t, cond)", "pred = denoiser(x, t)"),
    ),
    *_of(
        "samplers/stochastic",
        "stochastic",
        ("if times[to.step : to.step + 1] != (to.t,):", "if to.step >= len(times):"),
        ("if to.step == len(times) - 1", "if to.step >= len(times) - 2"),
        ("times[to.step + 1], dtype", "times[to.step], dtype"),
        ("k = arriving(schedule, ", "k = schedule.at("),
        ("shrink = s.alpha / k.alpha", "shrink = s.alpha"),
        ("(shrink * k.sigma) ** 2", "k.sigma ** 2"),
        (").sqrt()\n        return", ")\n        return"),
        ("spread * fresh(x, to.step)", "spread * fresh(x, to.step - 1)"),
        ("shrink * k.mix(", "k.mix("),
    ),
    *_of(
        "samplers/encode",
        "encoder",
        ("pairwise(reversed(checked(times)))", "pairwise(checked(times))"),
        ("to = schedule.at(torch.tensor(then", "to = schedule.at(torch.tensor(now"),
        ("pred = denoiser(x, t, cond)", "pred = denoiser(x, t)"),
        ("return noise_of(schedule, x, times[0])", "return x"),
        ("noise_of(schedule, x, times[0])", "noise_of(schedule, x, times[-1])"),
        ("level.sigma < 0.1 * level.alpha", "level.sigma == 0"),
        ("float(level.alpha / level.sigma)", "float(level.sigma / level.alpha)"),
        (".to(x0.dtype)", ".to(torch.float64)"),
    ),
    *_of(
        "samplers/editing",
        "editing",
        ("noise_of(schedule, level.mix(x0, noise), t)", "level.mix(x0, noise)"),
        ("level.mix(x0, noise), t)", "level.mix(noise, x0), t)"),
        ("torch.where(known, to.level", "torch.where(~known, to.level"),
        ("to.level.mix(x0, noise), step", "x0, step"),
        ("to.level.mix(x0, noise), step", "seen[-1].point.level.mix(x0, noise), step"),
    ),
    *_of(
        "evaluation/reconstruction",
        "reconstruction",
        ("again(back=full)", "again(back=steps)"),
        ("again(back=steps)", "again(back=full)"),
        ("min(max(1.0, low), high)", "min(max(1.0, high), high)"),
        ("torch.arange(n) * count // n", "torch.arange(n)"),
    ),
    *_of(
        "cli/images",
        "cli_encode",
        ("> 127", "< 127"),
        ("own.index(name) if", "names.index(name) if"),
        ("range(first, first + n)", "range(n)"),
    ),
    *_of("cli/encoded", "cli_encode", ("and bool(noise.isfinite().all())", "")),
    *_of(
        "samplers/walk",
        "encoder",
        ("return x / schedule.at(_time(t)).sigma", "return x"),
        ("return x / schedule.at(_time(t)).sigma", "return x / schedule.at(_time(t)).alpha"),
    ),
    *_of(
        "pipeline/given",
        "editing encoder",
        ("if self.strength == 1:\n", "if False:\n"),
        ("abs(t - self.strength) < 1e-6", "abs(t - self.strength) < 1e-9"),
        ("abs(t - self.strength) < 1e-6", "abs(t - self.strength) < 0.02"),
        ("return times[here[0] :]", "return times[here[0] + 1 :]"),
        ("return (self.strength, *(t for", "return (1.0, *(t for"),
        ("for t in times if t < self.strength", "for t in times if t > self.strength"),
        ("torch.where(self.known, begun, noise)", "noise"),
        ("self.strength == 1 and self.known is None", "self.known is None"),
        ("(~known).any(1, keepdim=True)", "(~known).all(1, keepdim=True)"),
        ("F.max_pool2d(hidden, codec.factor)", "-F.max_pool2d(-hidden, codec.factor)"),
        ("torch.where(self.known, self.images, x)", "x"),
        ("torch.zeros_like(moments.chunk", "torch.ones_like(moments.chunk"),
        ("keeping(step, known, images, noise)", "keeping(step, known, noise, images)"),
        ("if not 0 < strength <= 1", "if not 0 <= strength <= 1"),
    ),
    *_of(
        "pipeline/walks",
        "stochastic",
        ('sampler == "stochastic" and made_for != sampler', "False"),
        ('made_for == "stochastic" and sampler != made_for', "False"),
        ("own[2][::2]", "own[2]"),
        ('made_for == "stochastic" and 2 in own', "2 in own"),
        ("own[min(own)]", "own[max(own)]"),
    ),
    *_of("pipeline/walks", "encoder", ('if made_for == "encode":', 'if made_for == "decode":')),
    *_of(
        "pipeline/walks",
        "editing",
        ("step=around(step)", "step=step"),
        ("if keeps and sampler", "if sampler"),
    ),
    *_of(
        "samplers/singlestep",
        "singlestep",
        (
            "to.alpha * _weight(-_h(anchor, to), order)",
            "to.alpha * _weight(_h(anchor, to), order)",
        ),
        ("return -to.sigma * _weight", "return to.sigma * _weight"),
        ("z * z.expm1() / 2 if order == 2", "z.expm1() - z if order == 2"),
        ("else z.expm1() - z", "else z * z.expm1() / 2"),
        ("anchor.point.level.logsnr) / 2", "anchor.point.level.logsnr) / 1"),
        ("anchor = seen[-1 - inner]", "anchor = seen[-1 - min(inner, 1)]"),
    ),
    *_of(
        "samplers/sde",
        "sde",
        ("rise - 2 * f", "rise - f"),
        ("(g2 * passed).sqrt()", "(g2 * passed)"),
        ("f * x + g2 / here", "f * x + g2 / 2 / here"),
        ("if to.t == 0:", "if to.t < 0:"),
    ),
    *_of(
        "timegrids",
        "singlestep",
        ("(threes - 1) + [2, 1]", "(threes - 1) + [1, 2]"),
        ("[k + j / order for k", "[k + j / 3 for k"),
        ("+ end * (k / n)", "+ end * (k / n) ** 2"),
        ("torch.lerp(ends[0], ends[1], share)", "torch.lerp(ends[1], ends[0], share)"),
    ),
    *_of(
        "samplers/published",
        "singlestep",
        ("_end(schedule, 1e-4)", "_end(schedule, 1e-3)"),
    ),
    *_of(
        "batch",
        "latent_pipeline",
        ("null = torch.where(rows, null, said)", "null = torch.where(rows, said, null)"),
        ("return self.context if isinstance", "return self.label if isinstance"),
    ),
    *_of(
        "nets/text",
        "text",
        ("attention_mask=mask", "attention_mask=None"),
        ("max_length=self.tokens", "max_length=self.tokens - 1"),
        ("len(ids) > self.tokens", "len(ids) >= self.tokens"),
        ("dtype=torch.float32", 'dtype="auto"'),
    ),
    *_of(
        "data/captions",
        "captions",
        ('"utf-8-sig"', '"utf-8"'),
        (".extend(captions)", ".append(captions[0])"),
    ),
    *_of(
        "hub/published",
        "published",
        ("NetTime(scale=999.0)", "NetTime(scale=1000.0)"),
        ('"time": NetTime(scale=1000.0)', '"time": NetTime(scale=1000.0, offset=-1.0)'),
        ("0.00085, 0.012)", "0.00085, 0.02)"),
        ("load_codec(Path(codec), scale=self.scale)", "load_codec(Path(codec))"),
        ('"classes": 1000, "null": 1000', '"classes": 1000, "null": 999'),
        ("return path / AVERAGED", "return path / RAW"),
        ('texts.encode([""])', 'texts.encode(["."])'),
    ),
    *_of(
        "data/latents",
        "latents",
        ("draw.uniform() < 0.5", "draw.uniform() < 0.4"),
        (
            "self.moments.rows(self.views * rows + view)",
            "self.moments.rows(self.views * rows - view)",
        ),
        ("codec.drawn(moments, noise, self.scale)", "codec.drawn(moments, noise, 1.0)"),
        ("mean * self.scale", "mean / self.scale"),
        ("chunk(2, dim=1)[0]", "chunk(2, dim=1)[1]"),
        ("self.offsets[rows + 1] - first", "self.offsets[rows + 1] - first - 1"),
    ),
    *_of("data/shards", "latents", ("right=True", "right=False")),
    *_of(
        "data/encoding",
        "latents",
        ("images.flip(-1)", "images.flip(-2)"),
        ("torch.tensor([0, *itertools", "torch.tensor([1, *itertools"),
        ("codec.eval()", "codec.train()"),
    ),
    *_of("data/streamed", "latents", (".div_(127.5).sub_(1)", ".div_(127.5).sub_(0)")),
    *_of(
        "codec",
        "autoencoder",
        (
            "mean, log_variance = moments.chunk(2, dim=1)",
            "log_variance, mean = moments.chunk(2, dim=1)",
        ),
        ("log_variance.clamp(-30, 20) / 2", "log_variance.clamp(-30, 20)"),
        ("clamp(-30, 20)", "clamp(-20, 20)"),
        ("* noise) * scale", "* noise) / scale"),
    ),
    *_of(
        "nets/autoencoder",
        "autoencoder",
        ("self._decode(part / self.scale)", "self._decode(part * self.scale)"),
        (".clamp(-1, 1)", ".clamp(0, 1)"),
        (
            '(len(self.config["block_out_channels"]) - 1)',
            '(len(self.config["block_out_channels"]))',
        ),
        ("latents[0, 0].numel() * self.factor**2", "latents[0, 0].numel() * self.factor"),
        ("drawn(moments, noise, 1.0)", "drawn(moments, noise, self.scale)"),
        ("self._home.digest == digest and", ""),
    ),
    *_of(
        "nets/foreign",
        "autoencoder",
        ("levels - 1 - int(found[1])", "int(found[1])"),
        ('"mid_block.resnets.1": "mid.block_2"', '"mid_block.resnets.1": "mid.block_1"'),
    ),
    *_of(
        "methods/autoencoding",
        "autoencoding",
        ("log_variance.exp() - 1 - log_variance", "log_variance.exp() + 1 - log_variance"),
        ("return total / 2", "return total"),
        ("log_variance.clamp(-30, 20)", "log_variance"),
        ("self.kl_weight * divergence(moments)", "divergence(moments)"),
        ("loss / x[0].numel()", "loss / x.numel()"),
        ("std(correction=0)", "std(correction=1)"),
        ("return 1 / deviation", "return deviation"),
        ("torch.log10(4 / squared)", "torch.log10(2 / squared)"),
    ),
    *_of(
        "cli/codec",
        "cli_codec",
        ("net.decode(latents * net.scale)", "net.decode(latents)"),
        ("min(2**level, 4)", "min(2**level, 8)"),
        ("* len(data) // count", ""),
        ("gcd(shape.width, 128) // 4", "gcd(shape.width, 128)"),
        ("drawn(moments, noise, 1.0)", "drawn(moments, noise, net.scale)"),
        ("LOG_VARIANCE = -6.0", "LOG_VARIANCE = 0.0"),
    ),
    *_of(
        "nets/attention",
        "uvit uvit_model",
        ("d**-0.5 if scale", "d**0.5 if scale"),
        ("alpha=scale", "alpha=1"),
        ("attention(q, k, v, scale=scale)", "attention(q, k, v)"),
        ("qkv.dtype is torch.bfloat16", "qkv.dtype is torch.float32"),
        ("torch.cat([x, skip], dim=-1)", "torch.cat([skip, x], dim=-1)"),
    ),
    *_of(
        "nets/uvit",
        "uvit uvit_model",
        ("skips.pop()", "skips.pop(0)"),
        ("tokens.insert(1, self.context_embed", "tokens.insert(0, self.context_embed"),
        ("cells.permute(0, 5, 1, 3, 2, 4)", "cells.permute(0, 5, 1, 4, 2, 3)"),
        ("antialias=True", "antialias=False"),
    ),
    *_of(
        "data/resumed",
        "latents",
        ('entry["source"] != images.digest(rows)', 'entry["source"] == images.digest(rows)'),
    ),
    *_of(
        "evaluation/cost",
        "cost evidence",
        ("pipeline.grid(steps, sampler)  # refuses", "pipeline.grid(steps)  # refuses"),
        ("steps=min(steps, GROUP)", "steps=max(steps, GROUP)"),
    ),
    *_of(
        "evaluation/evidence",
        "evidence judging",
        ("way = teacher, asked.full_sampler", 'way = teacher, "ddim"'),
        ("if refused is None", "if refused is not None"),
    ),
    *_of(
        "cli/judging",
        "latent_runs",
        ("torch.arange(count) * len(data) // count", "torch.arange(count)"),
    ),
    *_of(
        "evaluation/judge",
        "latent_runs",
        ("None if self.captions is None else self.captions(ids)", "None"),
    ),
    *_of("denoiser", "latent_pipeline", ("torch.promote_types(dtype, torch.float32)", "dtype")),
    *_of("storage", "published autoencoder", ("weights_only=True", "weights_only=False")),
    *_of(
        "methods/base",
        "denoising",
        ("clamp(EDGE, 1 - EDGE)", "clamp(0, 1 - EDGE)"),
        ("draw.integers(levels) + 1", "draw.integers(levels)"),
        ("(target.x0 - guess.x0).square()", "(target.x0 - guess.x0).abs()"),
        (
            "(target.eps - guess.eps).square().flatten(1).mean(1)",
            "(target.eps - guess.eps).square().flatten(1).sum(1)",
        ),
    ),
    *_of(
        "methods/denoising",
        "denoising",
        ("draw.uniform() < drop", "draw.uniform() > drop"),
        ("Prediction(batch.x0, eps)", "Prediction(batch.x0, x_t)"),
        ("self.levels or getattr(", "getattr("),
    ),
    *_of(
        "methods/stochastic",
        "stochastic",
        ("i = 2 * draw.integers(len(self.times) // 2)", "i = draw.integers(len(self.times) // 2)"),
        ("(i + 2 < end)", "(i + 4 < end)"),
        ("(i + 2 < end)", "(i + 2 <= end)"),
        ("mid = i + 2 *", "mid = i + 1 *"),
        ("(i + 4).clamp(max=end)", "(i + 3).clamp(max=end)"),
        ("if steps > 1]", "if steps > 0]"),
        ("self.target_clip or None", "None"),
        ("if self.start == 2", "if self.start == 3"),
    ),
    *_of(
        "methods/encoder",
        "encoder",
        ("teacher, times[::-1]", "teacher, times"),
        ("teacher, times[-1])", "teacher, times[0])"),
        ('weighting: str = "snr+1"', 'weighting: str = "truncated-snr"'),
    ),
    *_of(
        "methods/progressive",
        "stochastic encoder",
        ("updates, times, made_for=self.made_for)", "updates, times)"),
        ("x_t, t, t_mid, t_end, batch.cond", "x_t, t, t_mid, t_end"),
        ("self.refuse(teacher, times)", "Progressive.refuse(self, teacher, times)"),
    ),
    *_of(
        "training/jobs",
        "stochastic",
        ('"made_for": stage.made_for}', '"made_for": "ddim"}'),
    ),
    *_of(
        "losses/soft",
        "losses losses_plain losses_edges",
        ("temperature**2 * values", "temperature * values"),
        ("-(p * log_q)", "-(p.detach() * log_q.exp())"),
        (
            "kl(log_softmax(t, temperature), log_softmax(s",
            "kl(log_softmax(s, temperature), log_softmax(t",
        ),
        ("b * kl(p, m) + (1 - b) * kl(q, m)", "b * kl(m, p) + (1 - b) * kl(m, q)"),
        ("p + log(b), q + log(1 - b)", "p + log(1 - b), q + log(b)"),
        ("(z.std(-1, keepdim=True)", "(z.std(-1, keepdim=True, correction=0)"),
        ("log_p.clamp(min=torch.finfo(log_p.dtype).min)", "log_p"),
        ("near = p * (r + torch.expm1(-r.clamp(-1, 1)))", "near = p * r - p + log_q.exp()"),
        ("torch.expm1(-r.clamp(-1, 1))", "torch.expm1(-r)"),
        ("p * r - p + log_q.exp()", "p * r + log_q.exp()"),
        ("r.abs() < 1", "r < 1"),
    ),
    *_of(
        "losses/arguments",
        "losses losses_edges feature_losses",
        ("teacher.detach()", "teacher"),
        ("torch.promote_types(x.dtype, torch.float32)", "x.dtype"),
        ("values.sum() / kept.sum().clamp(min=1)", "values.sum() / len(kept)"),
        ("kept.sum().clamp(min=1)", "kept.sum()"),
        ("if low < NO_LABEL or high >= classes", "if low < NO_LABEL or high > classes"),
        ("if all_given and low == NO_LABEL", "if all_given and high == NO_LABEL"),
    ),
    *_of(
        "losses/hard",
        "losses losses_plain losses_edges",
        ("ignore_index=NO_LABEL, label_smoothing=smoothing", "ignore_index=NO_LABEL"),
        ("kept=y != NO_LABEL", "kept=None"),
        ("t.argmax(-1)", "s.argmax(-1)"),
    ),
    *_of(
        "losses/mixtures",
        "losses losses_plain losses_edges",
        ("a * soft + b * hard_labels(", "b * soft + a * hard_labels("),
        ("(a * soft + b * hard) / (a + b)", "a * soft + b * hard"),
        ("+ (1 - a) * soft", "+ a * soft"),
    ),
    *_of(
        "losses/logit_matching",
        "losses losses_plain",
        ("square().mean(-1)", "square().sum(-1)"),
        ("square().sum(-1) / 2", "square().sum(-1)"),
    ),
    *_of(
        "losses/decoupling",
        "losses losses_plain losses_edges",
        ("column >= y", "column > y"),
        (
            "a * kl(binary_t, binary_s) + b * kl(others",
            "b * kl(binary_t, binary_s) + a * kl(others",
        ),
        ("others.logsumexp(-1, keepdim=True)", "others.exp().sum(-1, keepdim=True).log()"),
        ("temperature**2 * values", "values"),
    ),
    *_of(
        "losses/relations",
        "losses losses_plain losses_edges",
        ("correlation(q.T, p.T)", "correlation(q, p)"),
        ("(_with_eps, scale**2)", "(_with_eps, scale)"),
        ("(norms + EPS)", "norms"),
        ("torch.where(flat, 1, norm)", "norm"),
        ("norm <= 8 *", "norm < 0 *"),
        ("len(distances) * (len(distances) - 1)", "len(distances) * len(distances)"),
        ("torch.where(mean > 0, mean, 1)", "mean"),
        ("mean((1, 2))", "mean((0, 1))"),
        ("torch.where(norms > 0, norms, 1)", "norms.clamp(min=1e-12)"),
        ("enabled=False", "enabled=True"),
    ),
    *_of(
        "losses/features",
        "feature_losses",
        ("for x in (s - t, t))", "for x in (s - t, s))"),
        ("torch.where(kept, x, 0).square()", "torch.where(kept, x.square(), 0)"),
        ("error.sum(-1) / count.clamp(min=1)", "error.sum(-1) / error.shape[1]"),
        ("energy.sum(-1) / count.clamp(min=1)", "energy.sum(-1)"),
        ("torch.where(power > 0, power, 1)", "power"),
        ("kept=count > 0", "kept=count >= 0"),
        ("features.square().mean(_channels", "features.abs().mean(_channels"),
        ("(a - b).square().mean(-1)", "(a - b).square().sum(-1)"),
        ("1 if features.ndim == 4 else -1", "1"),
    ),
    *_of("weighting", "encoder", ("float(weighting(0 * one, one))", "float(weighting(one, one))")),
    *_of(
        "methods/progressive",
        "progressive",
        ("level_of(teacher.schedule, t_mid, x_t)", "level_of(teacher.schedule, t, x_t)"),
        ("second = look(x_mid, t_mid)", "second = look(x_mid, t)"),
        ("second = look(x_mid, t_mid", "second = look(x_t, t_mid"),
        ("found if clip is None else found.clipped(", "found if clip else found.clipped("),
        ("first = look(x_t, t)", "first = teacher(x_t, t, cond)"),
        ("self.target_clip or None", "None"),
        ("t_end, batch.cond, clip=self.clip", "t_end, batch.cond"),
        ("forgiven(guess, target, self.clip)", "guess.clipped(x_t, level, self.clip)"),
        ("clamp(-clip, clip) == target.x0", "clamp(-clip, clip) != target.x0"),
        ("clamp(-clip, clip) == target.x0", "abs() > clip"),
        ("torch.where(same, target.eps, guess.eps)", "guess.eps"),
        ("torch.lerp(first.x0, second.x0, x_share.to(x_t.dtype).reshape(shape))", "second.x0"),
        ("torch.lerp(first.eps, second.eps", "torch.lerp(second.eps, first.eps"),
        (
            "second = end.alpha * mid.sigma - mid.alpha",
            "second = end.alpha * mid.sigma + mid.alpha",
        ),
        (
            "both = end.alpha * here.sigma - here.alpha",
            "both = end.alpha * here.sigma + here.alpha",
        ),
        ("here.sigma * second / (mid.sigma * both)", "mid.sigma * second / (here.sigma * both)"),
        ("here.alpha * second / (mid.alpha * both)", "mid.alpha * second / (here.alpha * both)"),
        ("schedule.at(t_mid), arriving(schedule, t_end)", "schedule.at(t_mid), schedule.at(t_end)"),
        ("@torch.no_grad()\ndef two_step_target", "def two_step_target"),
        ("i = 2 * draw.integers(len(self.times) // 2)", "i = draw.integers(len(self.times) // 2)"),
        ("on_grid(self.times, i, i + 1, i + 2)", "on_grid(self.times, i, i + 1, i + 1)"),
        ("times = times[::2]", "times = times[: len(times) // 2 + 1]"),
        ("teacher = student", "pass"),
        ("self.updates_for(halving, steps)", "self.updates_for(0, steps)"),
        ("2 if steps <= 2 else 1", "2 if steps < 2 else 1"),
        ("level.alpha < 0.1 * level.sigma", "level.alpha <= 0 * level.sigma"),
        ("if vanishes(WEIGHTINGS", "if not vanishes(WEIGHTINGS"),
        ("stop * 2 ** max(1, ratio", "stop * 2 ** max(0, ratio"),
    ),
    *_of(
        "methods/reparameterise",
        "reparameterise",
        ("logsnr.exp() < self.readable", "logsnr.exp() > self.readable"),
        ("readable: float = 0.01", "readable: float = 0.1"),
        ("torch.where(rows, batch.x0, pred.x0)", "torch.where(rows, x_t, pred.x0)"),
        ("torch.where(rows, eps, pred.eps)", "torch.where(rows, x_t * 0, pred.eps)"),
        ("self.teacher.schedule.time(logsnr", "self.schedule.time(logsnr"),
        ("replace(schedule, zero_snr=True)", "replace(schedule, zero_snr=False)"),
        ("net = teacher.twin().net", "net = teacher.net"),
    ),
    *_of(
        "methods/guided",
        "guided guided_runs cli_guided",
        ("low + (high - low) * draw.uniform()", "low + high * draw.uniform()"),
        ("low + (high - low) * draw.uniform()", "(high - low) * draw.uniform()"),
        ("Guided(self.teacher, scale, self.null)", "Guided(self.teacher, scale - 1, self.null)"),
        (
            "student(x_t, t, told(batch.cond, scale))\n        return",
            "student(x_t, t, batch.cond)\n        return",
        ),
        (
            "student(x_t, t, told(batch.cond, scale))\n        return",
            "student(x_t, t, told(batch.cond, scale - 1))\n        return",
        ),
        ("self.null)(x_t, t, batch.cond)", "self.null)(batch.x0, t, batch.cond)"),
        ("null.toward(label, scale)", "null.toward(label, scale - 1)"),
        (
            'found[f"{scale:g}"] = float(error.square().mean().sqrt())',
            'found[f"{scale:g}"] = float(error.square().mean())',
        ),
        ("replace(batch, cond=told(batch.cond, scale)), draw)", "batch, draw)"),
        ("halvings = self.halving.stages(student)", "halvings = self.halving.stages(teacher)"),
        ("yield at_any_scale(stage, self.guidance)", "yield stage"),
        ("return replace(cond or Cond(), guidance=scale)", "return Cond(guidance=scale)"),
        ("self.updates, guidance=self.guidance)", "self.updates)"),
        ("if not self.student and not self.student_net", "if not self.student"),
        ('{**config, **own, "guidance"', '{**own, **config, "guidance"'),
        ("if not 0 <= low <= high < float", "if not 0 <= low < high < float"),
        ("weighting, levels)\n        yield", "weighting)\n        yield"),
        ("(start // self.stop).bit_length() - 1", "(start // self.stop).bit_length()"),
        ("refuse_blind(teacher, (", "print(teacher, ("),
        ("    forwards = 5", "    forwards = 4"),
    ),
    *_of(
        "nets/guidance",
        "guidance",
        ("1000 * w.to(dtype)", "999 * w.to(dtype)"),
        ("-log(10000) * k / (half - 1)", "-log(10000) * k / half"),
        ("torch.cat([angle.sin(), angle.cos()]", "torch.cat([angle.cos(), angle.sin()]"),
        ("guidance_features(scale - 1, self.features)", "guidance_features(scale, self.features)"),
        ("nn.init.zeros_(self.leave.weight)", "nn.init.ones_(self.leave.weight)"),
        ("nn.init.zeros_(self.leave.bias)", "nn.init.ones_(self.leave.bias)"),
        ("functional.silu(self.enter(features))", "functional.gelu(self.enter(features))"),
        ("return out + value", "return value"),
        (
            "stack.callback(module.register_forward_hook(add).remove)",
            "module.register_forward_hook(add)",
        ),
        (
            "torch.promote_types(w.dtype, torch.float32)",
            "torch.promote_types(w.dtype, torch.float16)",
        ),
    ),
    *_of(
        "nets/guided",
        "guidance",
        ("if strange or not lacking", "if strange"),
        ("torch.manual_seed(seed)", "torch.manual_seed(0)"),
        ("with torch.random.fork_rng(devices=[]):", "with torch.random.fork_rng(enabled=False):"),
        ("new.train(net.training)", "new.train(True)"),
        (".to(weight.device, weight.dtype)", ".to(weight.device)"),
    ),
    *_of(
        "nets/adapters",
        "guidance",
        ("nn.init.zeros_(cast", "nn.init.ones_(cast"),
        ("guidance_features(scale - 1, self.guidance)", "guidance_features(scale, self.guidance)"),
        ("if added is not None and model.gradient", "if added is None and model.gradient"),
        ("[block.norm1.emb for block in model.transformer_blocks]", "[]"),
    ),
    *_of(
        "nets/uvit",
        "guidance",
        ("time = time + self.guidance_embed", "time = time * 0 + self.guidance_embed"),
    ),
    *_of(
        "nets/mlp",
        "guidance",
        ("about = about + self.guidance(guidance)", "about = self.guidance(guidance)"),
    ),
    *_of(
        "pipeline/pipeline",
        "guided_runs",
        ("low <= guidance <= high", "low < guidance <= high"),
        ("low <= guidance <= high", "low <= guidance < high"),
        ("guidance=None if self.guidance is None else guidance", "guidance=None"),
    ),
    *_of(
        "pipeline/description",
        "guided_runs",
        ('else tuple(rest["guidance"])', 'else tuple(rest["guidance"][::-1])'),
    ),
    *_of(
        "methods/classification",
        "classification",
        ("student(batch.x0)", "student(-batch.x0)"),
        (
            'smoothing=self.smoothing, reduction="none"',
            'smoothing=self.smoothing, reduction="batchmean"',
        ),
    ),
    *_of(
        "data/dataset",
        "data",
        ("x0.float().div_(127.5)", "x0.float().div_(128)"),
        ("x0.flip(-1)", "x0.flip(-2)"),
    ),
    *_of("data/order", "data", ("[seed, stage, epoch]", "[seed, stage]")),
    *_of(
        "training/ema",
        "engine",
        ("1 - self.decay", "self.decay"),
        ("1.0 if update == 0", "1.0 if update == 1"),
    ),
    *_of(
        "training/settings",
        "engine",
        ("(1 - update / updates)", "(1 + update / updates)"),
        ("min(update / self.warmup, 1.0)", "min(1 + update / self.warmup, 1.0)"),
    ),
    *_of(
        "training/teachers",
        "teachers",
        ("for own in teacher.times):", "for own in teacher.times[:1]):"),
        ("len(a) == len(b) and all(", "all("),
        ("teacher.made_for != wanted", "False"),
        ("if not got and seen != [wanted]", "if not got and seen == []"),
        (
            "isinstance(method, GuidedDistillation | Reparameterise | Shrink)",
            "isinstance(method, Reparameterise | Shrink)",
        ),
        ("student.twin().cpu()", "student.cpu()"),
    ),
    *_of(
        "training/optimiser",
        "optimiser",
        ('adjust_lr_fn="match_rms_adamw"', 'adjust_lr_fn="original"'),
        ("if id(p) not in chosen", "if id(p) in chosen"),
        ("isinstance(layer, nn.Linear)", "isinstance(layer, nn.Embedding)"),
    ),
    *_of(
        "evaluation/distances",
        "evaluation distances",
        ("(1 / n + 1 / len(real))", "(1 / n)"),
        ("spread - 2 * shared", "spread - shared"),
        ("x.shape[1] + 1) ** 3) * wy", "x.shape[1] + 1) ** 2) * wy"),
        ("within(fake, other) - 2 * between", "within(fake, other) - between"),
        ("(among - w.square().sum(1))", "among"),
        ("torch.xlogy(mean, mean).sum()", "torch.xlogy(mean, p).sum()"),
        (
            "_inside(real, fake, k), _inside(fake, real, k)",
            "_inside(fake, real, k), _inside(real, fake, k)",
        ),
        ("topk(k, largest=False)", "topk(k, largest=True)"),
    ),
    *_of(
        "evaluation/intervals",
        "intervals",
        (
            "quantiles(2 * value - np.array(draws), level)",
            "quantiles(value - np.array(draws), level)",
        ),
        ("[(1 - level) / 2, (1 + level) / 2]", "[(1 - level), (1 + level) / 2]"),
    ),
    *_of(
        "evaluation/distance_intervals",
        "gate intervals",
        ("(draws - draws.mean(0)) / measured", "draws - draws.mean(0)"),
        ("quantiles(measured[0] - apart, level)", "quantiles(draws[:, 0], level)"),
        ("np.arctan2(top, bottom)", "np.arctan2(bottom, top)"),
    ),
    *_of(
        "evaluation/gate",
        "gate",
        ("ratio.high <= tolerance", "ratio.low <= tolerance"),
        ("ratio.low > tolerance else", "ratio.high > tolerance else"),
        ("samples = min(2 * samples, self.most)", "samples = self.most"),
        ("decision.steps > self.until", "decision.steps < self.until"),
        ("return decision.ratio.value <= tolerance", "return decision.ratio.low <= tolerance"),
    ),
    *_of(
        "evaluation/drift",
        "drift",
        ("tail = FALSE_ALARMS / (AMONG * len(teacher)) / 2", "tail = 0.05 / 2"),
        ("sure = abs(value) - error", "sure = abs(value) + error"),
        ("4 * inner - around", "3 * inner - around"),
        ("(student - slope * teacher)", "(student - teacher)"),
    ),
    *_of(
        "evaluation/fidelity",
        "fidelity",
        ("20 * math.log10(PEAK", "10 * math.log10(PEAK"),
        ("PEAK = 2.0", "PEAK = 1.0"),
        ("there.alpha.to(x0) * (guess.x0", "there.sigma.to(x0) * (guess.x0"),
    ),
    *_of(
        "evaluation/guided",
        "guided_evaluation",
        ("judge.at(scale, judge.seed + 1)", "judge.at(scale, judge.seed)"),
        ("square_errors(first, found.images)", "square_errors(found.images, found.images)"),
        (
            "raw_frechet_ratio(reference, seen, features[0]",
            "raw_frechet_ratio(reference, features[0], seen",
        ),
    ),
    *_of(
        "evaluation/kept_samples",
        "guided_evaluation",
        ('"seed": judge.seed', '"seed": 0'),
        ("digest_of(pipeline.denoiser)]", '""]'),
    ),
    *_of(
        "evaluation/intervals",
        "guided_evaluation",
        ("(n - 1 - own) // strata + 1", "n // strata + 1"),
    ),
    *_of(
        "evaluation/cost",
        "guided_evaluation",
        ("(2 if both else 1)", "(1 if both else 1)"),
    ),
    *_of(
        "cli/guided_gating",
        "guided_evaluation",
        ("Interval(*(max(getattr", "Interval(*(min(getattr"),
    ),
    *_of(
        "evaluation/evidence",
        "evidence",
        ("calls(sampler, steps) <= count", "calls(sampler, steps) < count"),
    ),
    *_of(
        "report/guided",
        "slider",
        ("abs(known - scale)", "(known - scale)"),
        ('row["name"].removeprefix(STUDENT) == label', 'row["name"] == label'),
    ),
    *_of(
        "report/slider",
        "slider",
        ("(at == 1) == (scale == 1)", "(at > 0) == (scale > 0)"),
        ("len(found.labels) // 2", "1"),
    ),
    *_of(
        "data/augment",
        "augment",
        ("seed = key(self.seed, view, block)", "seed = key(self.seed, view)"),
        ("x = share * x + (1 - share) * other", "x = share * x + (1 + share) * other"),
        ("draw.integers(self.views)", "draw.integers(self.views - 1)"),
        ("drawn = [{k: v[draw.rows] for", "drawn = [{k: v[: len(x0)] for"),
    ),
    *_of(
        "data/labels",
        "labels",
        ("(sure >= threshold)", "(sure > threshold)"),
        ("descending=True", "descending=False"),
    ),
    *_of(
        "evaluation/classification",
        "classification_scores",
        (
            "middle = (hits + z * z / 2) / (rows + z * z)",
            "middle = (hits + z * z) / (rows + z * z)",
        ),
        ("rows * share * (1 - share) + z * z / 4", "rows * share * (1 - share) + z * z / 2"),
        ("(sure * bins).ceil()", "(sure * bins).floor()"),
        ("gaps.abs().sum()", "gaps.sum().abs()"),
    ),
    *_of(
        "nets/image_classifiers",
        "classifiers",
        ("x = F.max_pool2d(x, (min(POOL,", "x = F.avg_pool2d(x, (min(POOL,"),
    ),
    *_of(
        "nets/preprocessing",
        "classifiers",
        ("return ((images + 1) / 2 - mean) / std", "return (images - mean) / std"),
    ),
    *_of(
        "methods/weights",
        "terms",
        ("share = min(done / self.over, 1.0)", "share = min(done, 1.0)"),
        ("return Linear(0.0, weight, over)", "return Linear(weight, 0.0, over)"),
    ),
    *_of(
        "methods/recipes",
        "terms",
        ("soft_weight=1 - alpha, hard_weight=alpha", "soft_weight=alpha, hard_weight=1 - alpha"),
        ("weight=soft_weight / total", "weight=soft_weight"),
        ("LogitMatch(weight=1 - hard_share)", "LogitMatch(weight=hard_share)"),
    ),
    *_of(
        "methods/terms",
        "terms",
        ("torch.where(labels < 0, whole, found)", "torch.where(labels > 0, whole, found)"),
        ('losses.soft_targets if self.form == "kl"', 'losses.soft_targets if self.form != "kl"'),
    ),
    *_of(
        "methods/knowledge",
        "terms classifier_teachers",
        ("each = [weight_at(term.weight, self.done)", "each = [weight_at(term.weight, 0)"),
        ("return torch.stack(each).sum(0)", "return torch.stack(each).mean(0)"),
    ),
    *_of(
        "nets/teachers",
        "classifier_teachers",
        ("return each.logsumexp(0) - math.log(len(logits))", "return each.mean(0)"),
        ("return super().train(False)", "return super().train(mode)"),
    ),
    *_of(
        "nets/watched",
        "classifier_teachers",
        (
            "hooks.callback(module.register_forward_hook(keep).remove)",
            "hooks.callback(module.register_forward_hook(keep).__class__)",
        ),
    ),
    *_of("nets/modes", "distill_classifier", ("part.training = mode", "part.training = True")),
    *_of(
        "training/kept_answers",
        "distill_classifier",
        ("if not torch.equal(now, kept):", "if not now.allclose(kept, rtol=1e-4):"),
        ("self.table[batch.views.to(at), batch.ids", "self.table[0, batch.ids"),
    ),
    *_of(
        "methods/imitation",
        "shrink",
        ("share=self.denoising / whole", "share=self.output / whole"),
        ("torch.lerp(teacher.eps, data.eps, share)", "torch.lerp(data.eps, teacher.eps, share)"),
        ("loss = whole * self", "loss = self"),
        ("normalise=True, mask=near", "normalise=False, mask=near"),
        ("normalise=True, mask=near", "normalise=True, mask=None"),
        ("near = (theirs - mean)", "near = (student - mean)"),
        ("b[: len(a), self.extras :]", "b[-len(a) :, self.extras :]"),
    ),
    *_of("methods/shrink", "shrink", ("0.0 if guided else 0.1", "0.1")),
    *_of(
        "nets/pruning",
        "pruning",
        ("old = keep[j] if side", "old = j if side"),
        ("pairs - 1 - keep[len(keep) - 1 - j]", "pairs - 1 - keep[j]"),
        ("[following - 1 for", "[following for"),
        ("key=lambda k: -worth[k]", "key=lambda k: worth[k]"),
    ),
    *_of(
        "nets/carried",
        "pruning",
        ("layer = long if layer == last", "layer = long if layer == short"),
        ("up = int(found[1]) + many - few", "up = int(found[1])"),
    ),
    *_of("report/sizes", "cli_shrink", ("other[1] <= point[1]", "other[1] < point[1]")),
    *_of(
        "nets/sparsified",
        "compression",
        ("n=2, dim=0", "n=2, dim=1"),
        ("prune.L1Unstructured", "prune.RandomUnstructured"),
        ("int((value == 0).sum())", "int((value != 0).sum())"),
    ),
    *_of(
        "nets/quantised",
        "compression",
        ("min(layer.weight.shape[:2])", "max(layer.weight.shape[:2])"),
    ),
    *_of(
        "evaluation/compressed",
        "compression",
        ("paired_rmse(student.images, seen.images)", "paired_rmse(full.images, seen.images)"),
        ("judge.ratio(seen, student)", "judge.ratio(student, seen)"),
    ),
    *_of(
        "pipeline/program",
        "export",
        ("arriving(denoiser.schedule, grid[1:])", "arriving(denoiser.schedule, grid[:-1])"),
        ("found.clipped(x, here, self.clip)", "found.clipped(x, there, self.clip)"),
        ("return there.mix(", "return here.mix("),
    ),
)


def copied(to: Path) -> Path:
    """The package and the tests in a folder of their own."""
    for name in ("halfstep", "tests"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", to)
    return to


# Imports what is slow once, then answers every line of tests from a fork that has imported nothing of
# halfstep: a mutant costs its tests and not the 3 seconds of importing torch.
SERVER = """
import os, sys
import numpy, pytest, torch
torch.testing.assert_close(torch.ones(1), torch.ones(1))  # imports 400 modules
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        out = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        code = 70  # neither passed nor failed
        try:
            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *line.split()]))
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Place:
    """A folder with a copy of the package and the tests, and a process that runs tests there."""

    def __init__(self, folder: Path):
        # Without bytecode: Python would take a mutant of the same size and second for the original.
        env = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self.folder = folder
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=folder,
            env=os.environ | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def pytest(self, tests: tuple[str, ...]) -> tuple[int, str]:
        """Exit code and output of these tests, stopping at the first failure."""
        self.server.stdin.write(" ".join(tests) + "\n")
        self.server.stdin.flush()
        code = int(self.server.stdout.readline())
        return code, (self.folder / "said").read_text()

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()


def verdict(mutant: Mutant, place: Place) -> str:
    """'killed', 'survived', 'gone' (its text is not there) or 'broken' (the tests did not run)."""
    path = place.folder / mutant.file
    whole = path.read_text()
    try:
        path.write_text(mutant.applied(whole))
    except ValueError:
        return "gone"
    try:
        code, _ = place.pytest(mutant.tests)
    finally:
        path.write_text(whole)
    return {0: "survived", 1: "killed"}.get(code, "broken")


def run(mutants: list[Mutant]) -> int:
    """Print a line a mutant and a summary; 1 unless every one is killed."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(WORKERS) as pool:
        places = [Place(copied(Path(folder) / str(k))) for k in range(WORKERS)]
        try:
            bad = _run(mutants, places, pool)
        finally:
            for place in places:
                place.close()
    if bad is None:
        return 1
    print(f"{len(mutants) - bad} of {len(mutants)} killed, {time.monotonic() - began:.0f} s")
    return int(bool(bad))


def _run(mutants: list[Mutant], places: list[Place], pool: ThreadPoolExecutor) -> int | None:
    """How many were not killed; None if the tests do not pass without a mutant."""
    free: Queue[Place] = Queue()
    for place in places:
        free.put(place)

    def lent(work, what):
        place = free.get()
        try:
            return what, work(what, place)
        finally:
            free.put(place)

    needed = sorted({mutant.tests for mutant in mutants})
    whole = pool.map(lambda tests: lent(lambda what, place: place.pytest(what), tests), needed)
    for tests, (code, said) in whole:
        if code:
            print(said[-3000:], f"without a mutant, {' '.join(tests)} does not pass", sep="\n")
            return None
    bad = 0
    for mutant, outcome in pool.map(lambda mutant: lent(verdict, mutant), mutants):
        bad += outcome != "killed"
        print(f"{outcome:9}{mutant.name}", flush=True)
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="mutants whose name has this")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if options.only in mutant.name]
    if not chosen:
        print(f"no mutant has '{options.only}' in its name; --list prints them all")
        return 1
    if options.list:
        print(*(mutant.name for mutant in chosen), sep="\n")
        return 0
    return run(chosen)


if __name__ == "__main__":
    sys.exit(main())
