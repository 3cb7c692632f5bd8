"""Of what is measured."""

from tests.mutants.mutant import of

MUTANTS = (
    *of(
        "evaluation/reconstruction",
        "reconstruction",
        ("again(back=full)", "again(back=steps)"),
        ("again(back=steps)", "again(back=full)"),
        ("min(max(1.0, low), high)", "min(max(1.0, high), high)"),
        ("torch.arange(n) * count // n", "torch.arange(n)"),
    ),
    *of(
        "evaluation/cost",
        "cost evidence",
        ("pipeline.grid(steps, sampler)  # refuses", "pipeline.grid(steps)  # refuses"),
        ("few = min(steps, GROUP)", "few = max(steps, GROUP)"),
        ("few = min(steps, 2 * few)", "few = steps"),
        ("        short = times\n", "        short = times[:4]\n"),
    ),
    *of(
        "evaluation/evidence",
        "evidence judging",
        ("way = teacher, asked.full_sampler", 'way = teacher, "ddim"'),
        ("if refused is None", "if refused is not None"),
        ("if sampler in some else", "if sampler not in some else"),
        ("if own_steps:\n", "if False:\n"),
    ),
    *of(
        "evaluation/judge",
        "latent_runs",
        ("None if self.captions is None else self.captions(ids)", "None"),
    ),
    *of(
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
    *of(
        "evaluation/intervals",
        "intervals",
        (
            "quantiles(2 * value - np.array(draws), level)",
            "quantiles(value - np.array(draws), level)",
        ),
        ("[(1 - level) / 2, (1 + level) / 2]", "[(1 - level), (1 + level) / 2]"),
    ),
    *of(
        "evaluation/distance_intervals",
        "gate intervals",
        ("(draws - draws.mean(0)) / measured", "draws - draws.mean(0)"),
        ("quantiles(measured[0] - apart, level)", "quantiles(draws[:, 0], level)"),
        ("np.arctan2(top, bottom)", "np.arctan2(bottom, top)"),
    ),
    *of(
        "evaluation/gate",
        "gate",
        ("ratio.high <= tolerance", "ratio.low <= tolerance"),
        ("ratio.low > tolerance else", "ratio.high > tolerance else"),
        ("samples = min(2 * samples, self.most)", "samples = self.most"),
        ("decision.steps > self.until", "decision.steps < self.until"),
        ("return decision.ratio.value <= tolerance", "return decision.ratio.low <= tolerance"),
    ),
    *of(
        "evaluation/drift",
        "drift",
        ("tail = FALSE_ALARMS / (AMONG * len(teacher)) / 2", "tail = 0.05 / 2"),
        ("sure = abs(value) - error", "sure = abs(value) + error"),
        ("4 * inner - around", "3 * inner - around"),
        ("(student - slope * teacher)", "(student - teacher)"),
    ),
    *of(
        "evaluation/fidelity",
        "fidelity",
        ("20 * math.log10(PEAK", "10 * math.log10(PEAK"),
        ("PEAK = 2.0", "PEAK = 1.0"),
        ("there.alpha.to(x0) * (guess.x0", "there.sigma.to(x0) * (guess.x0"),
    ),
    *of(
        "evaluation/guided",
        "guided_evaluation",
        ("judge.at(scale, judge.seed + 1)", "judge.at(scale, judge.seed)"),
        ("square_errors(first, found.images)", "square_errors(found.images, found.images)"),
        (
            "raw_frechet_ratio(reference, seen, features[0]",
            "raw_frechet_ratio(reference, features[0], seen",
        ),
    ),
    *of(
        "evaluation/kept_samples",
        "guided_evaluation",
        ('"seed": judge.seed', '"seed": 0'),
        ("digest_of(pipeline.denoiser)]", '""]'),
    ),
    *of(
        "evaluation/intervals",
        "guided_evaluation",
        ("(n - 1 - own) // strata + 1", "n // strata + 1"),
    ),
    *of(
        "evaluation/cost",
        "guided_evaluation",
        ("(2 if both else 1)", "(1 if both else 1)"),
    ),
    *of(
        "evaluation/evidence",
        "evidence",
        ("calls(sampler, steps) <= count", "calls(sampler, steps) < count"),
    ),
    *of(
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
    *of(
        "evaluation/compressed",
        "compression",
        ("paired_rmse(student.images, seen.images)", "paired_rmse(full.images, seen.images)"),
        ("judge.ratio(seen, student)", "judge.ratio(student, seen)"),
    ),
)
