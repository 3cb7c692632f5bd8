"""A comparison of recipes of knowledge distillation in words."""

from collections.abc import Iterator

from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.recipe_comparison import Gain, RecipeComparison
from halfstep.report.words.numbers import DASH, figure, listed, MINUS


def points(value: float) -> str:
    """A difference of accuracies in points, with its sign: +1.25."""
    text = figure(100 * value, 2)
    return text if text.startswith(MINUS) or text == "0.00" else f"+{text}"


def point_ends(interval: Interval) -> str:
    """Such as "+0.31 to +2.20"."""
    return f"{points(interval.low)} to {points(interval.high)}"


def gain_cells(gain: Gain) -> tuple[str, str]:
    """The gain with its interval, and the verdict."""
    return f"{points(gain.interval.value)} ({point_ends(gain.interval)})", gain.verdict


def headline(comparison: RecipeComparison) -> str:
    """The verdicts in one sentence; the best recipe that helps comes first."""
    by: dict[str, list[Gain]] = {"helps": [], "does not": [], "cannot tell": []}
    for gain in sorted(comparison.gains, key=lambda gain: -gain.interval.value):
        by[gain.verdict].append(gain)
    parts = []
    for k, gain in enumerate(by["helps"]):
        verb = "helps" if k == 0 else "so does"
        name = f"{gain.student} {verb}" if k == 0 else f"{verb} {gain.student}"
        parts.append(
            f"{name}, by {points(gain.interval.value)} points ({point_ends(gain.interval)})"
        )
    if names := [gain.student for gain in by["does not"]]:
        parts.append(f"{listed(names)} {'does' if len(names) == 1 else 'do'} not help")
    if names := [gain.student for gain in by["cannot tell"]]:
        helps = "helps" if len(names) == 1 else "help"
        parts.append(f"{sample_sizes(comparison)} cannot tell whether {listed(names)} {helps}")
    return "; ".join(parts) + "."


def sample_sizes(comparison: RecipeComparison) -> str:
    """Such as "3 seeds and 360 test images"."""
    count = len(comparison.students[0].seeds)
    return f"{count} seed{'s' * (count != 1)} and {comparison.images:,} test images"


def explained(comparison: RecipeComparison) -> Iterator[str]:
    """What the intervals cover, and what would decide each open gain."""
    yield from covered(comparison)
    if len(comparison.students[0].seeds) > 1:
        for gain in comparison.gains:
            if gain.verdict == "cannot tell":
                yield f"{gain.student}: {deciding(gain)}."


def covered(comparison: RecipeComparison) -> Iterator[str]:
    """What the intervals cover, in sentences."""
    count, level = len(comparison.gains), f"{100 * comparison.level:g} %"
    each = f"{100 * comparison.gain_level:.4g} %"
    subject = (
        f"All {count} intervals of the gains hold together"
        if count > 1
        else "The interval of the gain holds"
    )
    how = f" (each alone in {each}: Bonferroni)" if count > 1 else ""
    if len(comparison.students[0].seeds) == 1:
        yield f"{subject} for new test images in {level} of such comparisons{how}."
        yield "One seed decides nothing, since the spread between seeds is unknown: write --seeds 3."
    else:
        yield f"{subject} for new seeds and new test images in {level} of such comparisons{how}."
    if comparison.margin:
        margin = 100 * comparison.margin
        least = f"{margin:g} point{'s' * (margin != 1)}"
        yield f"A recipe that surely gains less than {least} does not help."


def held_out_in_words(comparison: RecipeComparison) -> str:
    """The test images in words."""
    try:
        return f"the {100 * float(comparison.validate):g} % held out"
    except ValueError:
        return comparison.validate


def deciding(gain: Gain) -> str:
    """What would decide a gain that is open, in a sentence without its end."""
    if gain.seeds_needed is None:
        return "more seeds alone would not tell a gain as small as this; more test images might"
    return f"about {gain.seeds_needed} seeds would tell, if gain and spread stayed as they are"


def needed(gain: Gain, seeds: int) -> str:
    """What would decide a gain, in a table's cell."""
    if gain.verdict != "cannot tell":
        return DASH
    if seeds == 1:
        return "more seeds"
    return "more images" if gain.seeds_needed is None else f"{gain.seeds_needed} seeds"
