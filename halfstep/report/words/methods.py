"""The sentences of a comparison of methods: which one for which number of steps, and how sure that is."""

from dataclasses import replace

from halfstep.evaluation.method_data import CountVerdict, MethodComparison, ReferenceWalk
from halfstep.evaluation.setups import plural
from halfstep.report.words.numbers import figure, interval, listed
from halfstep.report.words.verdict import SAMPLERS

FAITHFUL = 0.01
"""A target within this share of the teacher's distance is as good as the teacher."""


def summarised(comparison: MethodComparison) -> MethodComparison:
    """The comparison with its headline and a sentence for each number of steps.

    Args:
        comparison: as measured.
    """
    sentences = tuple(sentence(verdict) for verdict in comparison.verdicts)
    return replace(comparison, headline=headline(comparison), sentences=sentences)


def headline(comparison: MethodComparison) -> str:
    """Such as "progressive has the lowest distance at 8, 4 and 2 steps; cannot tell at 1 step".

    Args:
        comparison: with its verdicts.
    """
    verdicts = comparison.verdicts
    if not verdicts:
        return "Nothing was compared: no run has a student of these steps"
    if len(comparison.methods) == 1:
        return f"Only {comparison.methods[0].name} was measured, so there is nothing to compare"
    chosen = dict[str, list[int]]()
    for verdict in verdicts:
        if verdict.answer in ("better", "one seed"):
            chosen.setdefault(verdict.best, []).append(verdict.steps)
    single = any(verdict.answer == "one seed" for verdict in verdicts)
    leads = "scored best" if single else "has the lowest distance"
    clauses = [f"{method} {leads} at {_steps(counts)}" for method, counts in chosen.items()]
    unsure = [verdict.steps for verdict in verdicts if verdict.answer == "cannot tell"]
    if unsure:
        clauses.append(f"{'c' if clauses else 'C'}annot tell at {_steps(unsure)}")
    text = "; ".join(clauses)
    return f"One seed cannot tell; {text}" if single else text


def sentence(verdict: CountVerdict) -> str:
    """Such as "At 4 steps progressive is better than any other: its distance is 1.2 % lower than ...".

    Args:
        verdict: the answer for one number of steps.
    """
    at, best = f"At {_steps([verdict.steps])}", verdict.best
    if verdict.answer == "alone" or verdict.difference is None:
        return f"{at} only {best} has a student."
    lower = f"{_share(verdict.difference.value)} lower than that of {verdict.second}"
    ends = f"{_share(verdict.difference.low)} to {_share(verdict.difference.high)}"
    seeds = "" if verdict.spread is None else f"{100 * verdict.spread:.1f} %"
    if verdict.answer == "better":
        return (
            f"{at} {best} is better: its Fréchet distance is {lower} ({ends}), more than seeds explain, "
            f"which differ by {seeds}.{_faithful(verdict)}"
        )
    if verdict.answer == "one seed":
        return (
            f"{at} {best} scored best: its Fréchet distance is {lower} ({ends}). One seed of a method cannot "
            f"tell how much another differs: add --seeds 3.{_faithful(verdict)}"
        )
    why = f"seeds differ by {seeds}" if seeds else "the samples alone leave it open"
    return (
        f"{at} it cannot be told whether {best} is better than {listed(verdict.alike)}: its Fréchet distance "
        f"is {lower} ({ends}), and {why}.{_faithful(verdict)}"
    )


def cautions(comparison: MethodComparison) -> list[str]:
    """What to know before the numbers are read: a target that is far from the teacher, or one seed.

    Args:
        comparison: as measured.
    """
    found, ratio = list[str](), comparison.target.ratio
    if ratio is not None and abs(ratio.value - 1) > FAITHFUL:
        side = "flatters" if ratio.value < 1 else "burdens"
        found.append(
            f"The target itself scores {figure(ratio.value, 3)} of the teacher, and its error {side} every "
            "student that lands on it: compare the ratios to the target, and the errors."
        )
    if comparison.verdicts and all(mean.seeds == 1 for mean in comparison.means):
        found.append(
            "One seed of each method: another seed may differ by more than the methods do. Three seeds tell "
            "(--seeds 3)."
        )
    return found


def trained(comparison: MethodComparison) -> str:
    """Such as "Each run was trained by adamw: 64 samples an update, learning rate 0.0003, ...".

    Args:
        comparison: as measured.
    """
    options = comparison.training
    if options is None:
        return ""
    falls = options["learning_rate_schedule"] == "linear"
    decay, ema = options["weight_decay"], options["ema"]
    parts = [
        f"{comparison.batch:,} samples an update",
        f"learning rate {options['learning_rate']:g}{' (falls to 0 within each stage)' if falls else ''}",
        *([f"weight decay {decay:g}"] if decay else []),
        f"ema {ema:g}" if ema else "no ema",
    ]
    beside = any(method.planned is None for method in comparison.methods)
    each = "Each run of this command" if beside else "Each run"
    end = "; runs beside have theirs among their options" if beside else ""
    return f"{each} was trained by {options['optimiser']}: {', '.join(parts)}{end}."


def walk(reference: ReferenceWalk) -> str:
    """Such as "DDIM in 32 steps".

    Args:
        reference: a way of sampling the teacher.
    """
    return sampling(reference.sampler, reference.steps)


def sampling(sampler: str, steps: int) -> str:
    """Such as "DDIM in 32 steps".

    Args:
        sampler: its name.
        steps: that it takes.
    """
    return f"{SAMPLERS.get(sampler, sampler)} in {plural(steps)}"


def target_score(target: ReferenceWalk, full: ReferenceWalk) -> str:
    """The target's distance, such as "its distance is 0.998 (0.990 to 1.006) times that of DDIM in 64 steps".

    Args:
        target: the target.
        full: the teacher at full steps.
    """
    if target.ratio is None:
        return "it is the teacher at full steps, so that its ratio is 1"
    return f"its distance is {interval(target.ratio, 3)} times that of {walk(full)}"


def _faithful(verdict: CountVerdict) -> str:
    """The method whose pictures are nearest to the target walk's, where it is another one."""
    if verdict.faithful is None or verdict.faithful == verdict.best:
        return ""
    return f" Nearest to the target's own pictures is {verdict.faithful}."


def _share(ratio: float) -> str:
    """By how much the best's distance is lower, of the second's over its own."""
    return f"{figure(100 * (1 - 1 / ratio), 1)} %"


def _steps(counts: list[int]) -> str:
    return f"{listed([str(n) for n in counts])} step{'' if counts == [1] else 's'}"
