"""Test a report's claims on rows of accuracies: means, paired differences, verdicts, a page, a picture.

knowledge_distillation_report.py makes the rows, {"data", "experiment", "seed", "accuracy"}.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import fmean, stdev

from matplotlib.figure import Figure
from scipy.stats import t as student_t

from halfstep.report.images.png import DDIM, STUDENT, TEACHER

MARGIN = 0.01
"""The smallest relevant difference of accuracies: one point."""
HOLDS, FAILS, OPEN, UNMEASURED = "holds", "does not hold", "cannot be told", "was not measured"
NOTE = (
    "The report's numbers come from the last 38 images of its validation set (74 % are 28 of 38, and 71 % "
    "are 27), photographs of flowers. They are shown for reference and cannot be compared with ours."
)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    error      standard error of the mean; nan for one seed
    low, high  95 % interval of Student's t
    """

    mean: float
    error: float
    low: float
    high: float
    seeds: int

    @property
    def significant(self) -> bool:
        """Whether the mean is further than two standard errors from 0."""
        return abs(self.mean) > 2 * self.error


def estimate(values):
    """Mean over seeds, with its standard error and interval."""
    n, mean = len(values), fmean(values)
    if n < 2:
        return Estimate(mean, math.nan, math.nan, math.nan, n)
    error = stdev(values) / math.sqrt(n)
    half = float(student_t.ppf(0.975, n - 1)) * error
    return Estimate(mean, error, mean - half, mean + half, n)


def paired_difference(rows, a, b):
    """Accuracy of `a` less that of `b`, seed by seed; None if no seed has both."""
    accuracy = {(row["experiment"], row["seed"]): row["accuracy"] for row in rows}
    seeds = sorted({seed for _, seed in accuracy})
    both = [s for s in seeds if (a, s) in accuracy and (b, s) in accuracy]
    return estimate([accuracy[a, s] - accuracy[b, s] for s in both]) if both else None


def surely_above(differences):
    """Holds if all are two standard errors above 0; refuted by one as far below."""
    if any(d.significant and d.mean < 0 for d in differences):
        return FAILS
    return HOLDS if all(d.significant and d.mean > 0 for d in differences) else OPEN


def no_better(differences):
    """Holds if all are two standard errors below a gain of a point; refuted by one that is surely above 0."""
    if any(d.significant and d.mean > 0 for d in differences):
        return FAILS
    return HOLDS if all(d.mean + 2 * d.error < MARGIN for d in differences) else OPEN


def alike(differences):
    """Holds if all are two standard errors within a point of 0; refuted by one that is surely beyond."""
    if any(abs(d.mean) - 2 * d.error > MARGIN for d in differences):
        return FAILS
    return HOLDS if all(abs(d.mean) + 2 * d.error < MARGIN for d in differences) else OPEN


@dataclass(frozen=True)
class Claim:
    """A claim: its text, a rule for differences (first less second) of pairs, and the report's number."""

    text: str
    rule: Callable
    pairs: tuple
    report: str


BEST = "weighted, augmented"
CLAIMS = [
    Claim("soft targets beat training from scratch", surely_above, (("soft", "scratch"),),
          "74 %; from scratch a figure only, at a tenth of the rate"),
    Claim("hard labels beside them add nothing", no_better, (("weighted", "soft"),),
          "71 % with, 74 % without"),
    Claim("matching logits is worst", surely_above,
          tuple((other, "logits") for other in ("soft", "weighted", BEST)), "56 %"),
    Claim("a deeper student helps it", surely_above, (("logits, deeper", "logits"),),
          "a figure only; its notebook 23 of 38"),
    Claim("augmentation is best", surely_above,
          tuple((BEST, other) for other in ("soft", "weighted", "logits", "logits, deeper")), "84 %"),
    Claim("temperature barely matters", alike,
          tuple((f"soft, T = {t}", "soft") for t in (1, 2, 20)), "no number"),
    Claim("a second teacher brings nothing", no_better,
          (("soft, second teacher", "soft"), ("soft, both teachers", "soft")), "a table, lost"),
    Claim("regularisation helps", surely_above, (("weighted, weight decay", "weighted"),),
          "expected, not measured"),
    Claim("longer training helps", surely_above, (("weighted, longer", "weighted"),),
          "expected, not measured"),
    Claim("images without labels help", surely_above, (("weighted, unlabelled too", "weighted"),),
          "advice, not measured"),
    Claim("so does choosing among them", surely_above,
          tuple((f"weighted, unlabelled, {how}", "weighted, unlabelled too")
                for how in ("sure", "sure, balanced")), "advice, not measured"),
    Claim("with few labels soft targets help, too", surely_above,
          tuple((f"soft, a {part} of the labels", f"scratch, a {part} of the labels")
                for part in ("tenth", "quarter")), "advice, not measured"),
]  # fmt: skip
OTHER_PAIRS = [
    ("toy, soft", "toy, scratch"),
    ("toy, soft, T = 0.5", "toy, scratch"),
    ("scratch", "scratch, a tenth of the rate"),
    ("weighted", "scratch"),
    ("hinton", "weighted"),
    ("tang", "soft"),
    ("scratch, augmented", "scratch"),
    (BEST, "scratch, augmented"),
    ("scratch, deeper", "scratch"),
    ("weighted, deeper", "scratch, deeper"),
    ("weighted, augmented, deeper", BEST),
    ("weighted, longer", "scratch, longer"),
    ("patient teacher", "weighted, longer"),
]
"""Further pairs of interest, without a claim."""


def result(rows, data):
    """All results of one data set, as JSON."""
    rows = [row for row in rows if row["data"] == data]
    names = list(dict.fromkeys(row["experiment"] for row in rows))
    scores = {n: [row["accuracy"] for row in rows if row["experiment"] == n] for n in names}
    pairs = dict.fromkeys([pair for claim in CLAIMS for pair in claim.pairs] + OTHER_PAIRS)
    differences = {pair: paired_difference(rows, *pair) for pair in pairs}
    return {
        "data": data,
        "accuracies": {name: asdict(estimate(values)) for name, values in scores.items()},
        "differences": [
            {"of": a, "less": b, **asdict(d), "beyond two standard errors": d.significant}
            for (a, b), d in differences.items()
            if d is not None
        ],
        "claims": [
            {"claim": c.text, "verdict": verdict(c, differences), "report": c.report}
            for c in CLAIMS
        ],
    }


def verdict(claim, by_pair):
    """The verdict on one claim, from the differences of its pairs."""
    differences = [by_pair[pair] for pair in claim.pairs]
    if any(d is None or d.seeds < 3 for d in differences):
        return UNMEASURED
    return claim.rule(differences)


def page(results):
    """The tables of one data set, in Markdown; accuracies and differences in percent."""
    lines = [f"## {results['data']}", "", "| experiment | accuracy, % | 95 % interval | seeds |"]
    lines += ["|---|---:|---:|---:|"]
    for name, mean in results["accuracies"].items():
        seeds = mean["seeds"]
        lines.append(f"| {name} | {mean_and_error(mean)} | {interval(mean)} | {seeds} |")
    lines += ["", "| difference, seed by seed | points | 95 % interval | beyond 2 SE |"]
    lines += ["|---|---:|---:|---|"]
    for d in results["differences"]:
        beyond = "yes" if d["beyond two standard errors"] else "no"
        pair = f"{d['of']} less {d['less']}"
        lines.append(f"| {pair} | {mean_and_error(d)} | {interval(d)} | {beyond} |")
    lines += ["", "| the report's claim | here | the report's number |", "|---|---|---|"]
    lines += [f"| {c['claim']} | {c['verdict']} | {c['report']} |" for c in results["claims"]]
    return "\n".join([*lines, "", NOTE, ""])


def mean_and_error(value):
    """Mean ± standard error, in percent."""
    return f"{100 * value['mean']:.2f} ± {100 * value['error']:.2f}"


def interval(value):
    """The 95 % interval, in percent."""
    return f"{100 * value['low']:.2f} to {100 * value['high']:.2f}"


def draw(rows, names, path):
    """Draw a panel for each data set: a point for each seed, a bar at their mean."""
    figure = Figure(figsize=(5.2 * len(names) + 2.4, 8.4), layout="constrained")
    order = list(dict.fromkeys(row["experiment"] for row in rows))
    for axis, name in zip(
        figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True
    ):
        for k, experiment in enumerate(order):
            values = [
                100 * row["accuracy"]
                for row in rows
                if (row["data"], row["experiment"]) == (name, experiment)
            ]
            if not values:
                continue
            kind = {"teacher", "scratch"}.intersection(experiment.split(", "))
            colour = {"teacher": TEACHER, "scratch": DDIM}.get("".join(kind), STUDENT)
            axis.plot(values, [k] * len(values), "o", color=colour, alpha=0.6, ms=5, mew=0)
            axis.plot(fmean(values), k, "|", color=colour, ms=14, mew=2)
        axis.set_yticks(range(len(order)), order)
        axis.set_title(name, fontsize=11)
        axis.set_xlabel("accuracy on the whole validation set, %")
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(len(order) - 0.5, -0.5)
    figure.savefig(path, dpi=130)
