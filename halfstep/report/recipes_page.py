"""OUT/compare.html: recipes of knowledge distillation compared, as one self-contained page."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from halfstep.evaluation.recipe_comparison import Gain, RecipeComparison
from halfstep.files import name_of
from halfstep.report.data_tables import Rows, spread
from halfstep.report.downloads import downloads
from halfstep.report.plots.figures import PageFigure, without_figures
from halfstep.report.plots.gains import gains_drawing
from halfstep.report.plots.svg import COLOURS
from halfstep.report.table_rows import named_values
from halfstep.report.templates import template, write_page
from halfstep.report.words import numbers, recipes as words

LIMIT = 2_000_000


def write_recipes_page(comparison: RecipeComparison, path: Path) -> Path:
    """Write the page, without scripts, and return its path.

    `ConfigError` for a page of 2 MB or more.
    """
    instead = "compare fewer recipes or seeds"
    return write_page(
        path,
        render(comparison, name_of(path.parent)),
        limit=LIMIT,
        name="the page",
        instead=instead,
    )


def render(comparison: RecipeComparison, folder: str) -> str:
    """The page as text."""
    made = asdict(comparison.provenance)
    figures = {} if without_figures() else {"gains": _figure(comparison)}
    tables = {
        "gains": _gain_rows(comparison.gains),
        "students": _student_rows(comparison),
        "versions": named_values(made.items()),
    }
    return template("recipes.html.j2").render(
        comparison=comparison,
        folder=folder,
        gains={gain.student: gain for gain in comparison.gains},
        seeds=[result.seed for result in comparison.students[0].seeds],
        figures=figures,
        without_figures=without_figures(),
        downloads=downloads(folder, tables, figures),
        made=made,
        colours=COLOURS,
        words=words,
        dash=numbers.DASH,
        guided=None,
    )


def _figure(comparison: RecipeComparison) -> PageFigure:
    texts = [
        f"{gain.student} {words.points(gain.interval.value)} ({words.point_ends(gain.interval)})"
        for gain in comparison.gains
    ]
    alt = f"Gain in points of accuracy over the control: {', '.join(texts)}."
    return PageFigure(
        gains_drawing(comparison.gains, comparison.margin, alt=alt), _gain_rows(comparison.gains)
    )


def _gain_rows(gains: Sequence[Gain]) -> Rows:
    return [
        {
            "student": gain.student,
            "control": gain.control,
            **spread("gain", gain.interval),
            "verdict": gain.verdict,
            "alone": gain.alone,
            "control_alone": gain.control_alone,
            "seeds_needed": gain.seeds_needed,
        }
        for gain in gains
    ]


def _student_rows(comparison: RecipeComparison) -> Rows:
    return [
        {
            "student": student.name,
            "terms": ", ".join(student.terms),
            "updates": student.updates,
            "forwards": student.forwards,
            "teacher": student.teacher,
            **asdict(result),
        }
        for student in comparison.students
        for result in student.seeds
    ]
