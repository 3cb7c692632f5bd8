"""A comparison of recipes with made-up numbers."""

from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.recipe_comparison import (
    ComparedStudent,
    Gain,
    gain_level,
    RecipeComparison,
    SeedResult,
)
from halfstep.evaluation.report_data import Provenance


def gain(student, low, value, high, verdict, **more):
    """A gain in points over the plain student, of two seeds."""
    return Gain(
        student=student, control="plain", differences=(value / 100 - 0.01, value / 100 + 0.01),
        interval=Interval(value / 100, low / 100, high / 100), alone=0.04, control_alone=0.02,
        verdict=verdict, **more,
    )  # fmt: skip


GAINS = (
    gain("hinton T=2", 0.3, 2.0, 3.7, "helps"),
    gain("logits", -6.0, -4.0, -2.0, "does not"),
    gain("dist", -1.0, 0.5, 2.0, "cannot tell", seeds_needed=9),
)


def comparison(gains=GAINS, seeds=(0, 1), **more):
    """A comparison on 400 images; every student has 50 % right."""
    results = tuple(
        SeedResult(seed=seed, accuracy=0.5, agreement=0.75, seconds=1.5) for seed in seeds
    )
    students = tuple(
        ComparedStudent(
            name=name, terms=("soft 0.9", "hard 0.1"), updates=30, forwards=960.0, seeds=results,
            accuracy=Interval(0.5, 0.4, 0.6), teacher=0.875,
        )
        for name in ("plain", *(each.student for each in gains))
    )  # fmt: skip
    machine = Provenance(
        command="halfstep compare knowledge", halfstep="0.2", torch="2.13", commit=None, machine="cpu",
        date="2026-12-01",
    )  # fmt: skip
    values = {
        "data": "digits", "validate": "0.3", "images": 400, "test": "ab", "teachers": ("t",),
        "net": "toy-student", "level": 0.95, "gain_level": gain_level(len(gains)), "margin": 0.0,
        "students": students, "gains": gains, "provenance": machine,
    }  # fmt: skip
    return RecipeComparison(**{**values, **more})
