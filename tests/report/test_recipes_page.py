"""The page of compared recipes: its sentences and its numbers."""

import re

import pytest

from halfstep.report.plots.gains import gains_drawing
from halfstep.report.recipes_page import render, write_recipes_page
from halfstep.report.words.numbers import DASH, MINUS
from halfstep.report.words.recipes import (
    covered,
    explained,
    headline,
    held_out_in_words,
    needed,
    points,
)
from tests.support.recipes import comparison, gain, GAINS


def visible(page):
    """The text of a page, in one line."""
    body = page[page.index("<main>") :]
    return " ".join(re.sub(r"<[^>]*>", " ", body).replace("\N{NBSP}", " ").split())


def test_the_headline_says_which_recipe_helps():
    assert headline(comparison()) == (
        "hinton T=2 helps, by +2.00 points (+0.30 to +3.70); logits does not help; 2 seeds and 400 test "
        "images cannot tell whether dist helps."
    )
    two = (
        gain("a", 1, 2, 3, "helps"),
        gain("b", 2, 4, 6, "helps"),
        gain("c", -9, -5, -1, "does not"),
    )
    assert headline(comparison((*two, gain("d", -9, -6, -1, "does not")))) == (
        "b helps, by +4.00 points (+2.00 to +6.00); so does a, by +2.00 points (+1.00 to +3.00); c and d do "
        "not help."
    )


def test_what_the_intervals_cover_and_what_would_tell():
    sentences = list(explained(comparison()))
    assert sentences[0].startswith(
        "All 3 intervals of the gains hold together for new seeds and new"
    )
    assert "(each alone in 98.33 %: Bonferroni)" in sentences[0]
    assert sentences[1:] == [
        "dist: about 9 seeds would tell, if gain and spread stayed as they are."
    ]
    (one,) = covered(comparison(GAINS[:1]))
    assert (
        one.startswith("The interval of the gain holds for new seeds") and "Bonferroni" not in one
    )
    alone = list(explained(comparison(seeds=(0,))))
    assert "new seeds" not in alone[0] and "write --seeds 3" in alone[1] and len(alone) == 2
    assert "less than 1 point does" in list(covered(comparison(margin=0.01)))[1]
    assert [needed(each, 2) for each in GAINS] == [DASH, DASH, "9 seeds"]
    few = gain("a", -1, 0, 1, "cannot tell")
    assert (needed(few, 2), needed(few, 1)) == ("more images", "more seeds")
    assert held_out_in_words(comparison()) == "the 30 % held out"
    assert held_out_in_words(comparison(validate="cifar10:x")) == "cifar10:x"


@pytest.mark.parametrize(
    ("value", "text"), [(0.0125, "+1.25"), (-0.02, f"{MINUS}2.00"), (0.000001, "0.00")]
)
def test_points_have_a_sign(value, text):
    assert points(value) == text


def test_the_page_has_every_number(tmp_path):
    path = write_recipes_page(
        comparison(cautions=("the teacher may know them",)), tmp_path / "c.html"
    )
    page = path.read_text()
    text = visible(page)
    for said in (
        f"hinton T=2 +2.00 +0.30 to +3.70 helps 4.00 % 2.00 % {DASH}",
        f"dist +0.50 {MINUS}1.00 to +2.00 cannot tell 4.00 % 2.00 % 9 seeds",
        "plain 50.00 40.00 to 60.00 50.00 50.00 75.0 % 30 soft 0.9, hard 0.1",
        "The teacher has 87.50 % right",
        "Caution. the teacher may know them.",
        "tested on the 30 % held out",
    ):
        assert said in text, said
    assert "<script" not in page and 'download="' in page
    assert render(comparison(), "x") == render(comparison(), "x")


def test_the_figure_has_a_mark_for_every_gain_and_seed():
    drawn = str(gains_drawing(GAINS, 0.01, alt="gains").inline)
    for name in ("hinton T=2", "logits", "dist", "what matters", "as the plain student"):
        assert name in drawn
    assert "--student" in drawn and "--ddim" in drawn
