"""Which method for which number of steps, and whether the difference is larger than a seed's."""

from collections.abc import Mapping, Sequence

from halfstep.evaluation.method_data import CountVerdict, MethodMean
from halfstep.evaluation.metrics.seed_spread import LEVEL, SharedDistances


def verdict_at(
    steps: int,
    means: Sequence[MethodMean],
    shared: SharedDistances,
    numbers: Mapping[str, Sequence[int]],
) -> CountVerdict:
    """The answer for one number of steps, by the methods' mean Fréchet distances.

    The best method is better than the others where the interval of each one's distance over its own lies
    above 1, at a level that divides the error among them, as the best was chosen after the measurement
    (Hsu 1984, multiple comparisons with the best, by Bonferroni).  The difference that is shown has the
    interval at 95 %.

    Args:
        steps: of the students.
        means: of each method at these steps.
        shared: the distances of all of them.
        numbers: numbers of each method's samplers in `shared`.
    """
    ranked = sorted(means, key=lambda mean: mean.distance)
    best, others = ranked[0], ranked[1:]
    errors = [mean for mean in means if mean.rmse is not None]
    faithful = min(errors, key=lambda mean: mean.rmse or 0.0).method if errors else None
    if not others:
        return CountVerdict(steps=steps, best=best.method, answer="alone", faithful=faithful)
    level, own = 1 - (1 - LEVEL) / len(others), numbers[best.method]
    alike = tuple(
        mean.method
        for mean in others
        if shared.ratio(numbers[mean.method], own, level=level).low <= 1
    )
    second = numbers[others[0].method]
    single = any(mean.seeds == 1 for mean in ranked)
    return CountVerdict(
        steps=steps,
        best=best.method,
        answer="cannot tell" if alike else "one seed" if single else "better",
        second=others[0].method,
        difference=shared.ratio(second, own),
        spread=shared.spread(second, own),
        alike=alike,
        faithful=faithful,
    )
