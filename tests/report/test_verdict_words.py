"""The sentences of a verdict: the tolerance, the undistilled teacher, a poor teacher, too few samples."""

import math

import pytest

from halfstep.report.words import verdict as words
from tests.support.evidence import evidence, measured, rows_of, typed
from tests.support.verdicts import KEPT, with_rows


def verdict(content):
    return words._against_teacher(typed(content))


def against(content, **by_calls):
    """The evidence whose students have these ratios to DDIM in as many steps: c8=(value, half width)."""
    for row in rows_of(content, "student"):
        value, half = by_calls[f"c{row['calls']}"]
        ratio = {"value": value, "low": value - half, "high": value + half}
        steps = f"{row['calls']} steps"
        row["baseline"] = {"names": [f"teacher, ddim, {steps}"], "ratio": ratio}
    return content


# ---- the tolerance


def test_a_student_that_keeps_the_quality_and_the_next_that_does_not():
    assert verdict(with_rows(**KEPT)) == (
        "4 network calls keep the quality of 64: Fréchet distance 1.03 (1.01 to 1.05) times the "
        "teacher's, within the tolerance of 1.10; 2 calls do not (1.21)."
    )


def test_one_call_is_singular_and_the_last():
    content = with_rows(c8=(1.0, 0.02), c4=(1.0, 0.02), c2=(1.0, 0.03), c1=(1.01, 0.03))
    assert verdict(content) == (
        "1 network call keeps the quality of 64: Fréchet distance 1.01 (0.98 to 1.04) times the "
        "teacher's, within the tolerance of 1.10."
    )


def test_nothing_passes():
    content = with_rows(c8=(1.22, 0.02), c4=(1.2, 0.02), c2=(1.3, 0.03), c1=(1.4, 0.03))
    assert verdict(content) == (
        "No student keeps the quality of 64 network calls within the tolerance of 1.10: the best of them, "
        "at 4 network calls, has 1.20 (1.18 to 1.22) times the teacher's Fréchet distance."
    )


def test_a_tie_names_all_winners():
    content = with_rows(c8=(1.2004, 0.02), c4=(1.2, 0.02), c2=(1.3, 0.03), c1=(1.4, 0.03))
    assert "the best of them, at 8 and 4 network calls, have 1.20 (1.18" in verdict(content)
    content["run"]["gate"] = None
    assert verdict(content).startswith("8 and 4 network calls have 1.20 (1.18")


def test_intervals_that_cannot_tell():
    content = with_rows(c8=(1.09, 0.04), c4=(1.11, 0.04), c2=(1.3, 0.03), c1=(1.4, 0.03))
    assert verdict(content) == (
        "2,000 samples cannot tell whether 8 network calls keep the quality of 64: Fréchet distance 1.09 "
        "(1.05 to 1.13) times the teacher's, the tolerance is 1.10; 2 calls do not (1.30)."
    )
    content = with_rows(**KEPT | {"c2": (1.11, 0.03)})
    assert "; of 2 calls 2,000 samples cannot tell: 1.11 (1.08 to 1.14)." in verdict(content)


def test_the_gates_ratio_counts_where_it_saw_more():
    content = with_rows(**KEPT | {"c4": (1.09, 0.04)})
    assert verdict(content).startswith("8 network calls keep")
    more = {"stage": "0004-steps", "steps": 4, "ratio": measured(1.07, 0.02), "samples": 8000}
    more["weights"] = "9" * 64
    content["run"]["gate"]["decisions"] = [more | {"verdict": "passed"}]
    assert verdict(content).startswith(
        "4 network calls keep the quality of 64: Fréchet distance 1.07"
    )
    content["run"]["gate"]["decisions"][0]["samples"] = 500
    assert verdict(content).startswith("8 network calls keep")


def test_without_a_gate():
    content = with_rows(**KEPT)
    content["run"]["gate"] = None
    assert verdict(content) == (
        "8 network calls have 1.02 (1.00 to 1.04) times the Fréchet distance of the teacher's 64, 1 network "
        "call 1.40 (1.37 to 1.43) times; no tolerance was set."
    )
    for row in content["rows"]:
        row["ratio"] = None
    assert verdict(content).startswith(
        "Nothing is decided, as no ratio was measured: the Fréchet distance is"
    )


# ---- the undistilled teacher


def test_every_answer_on_the_undistilled_teacher_is_one_clause():
    content = against(evidence(), c8=(1.0, 0.01), c4=(0.44, 0.02), c2=(1.1, 0.05), c1=(1.01, 0.1))
    report = typed(content)
    assert words.against_baselines(report) == (
        "The student is better than the undistilled teacher at 4 network calls; the undistilled teacher is "
        "as good at 8 network calls (DDIM 0.232, the student 0.178); the undistilled teacher is better at "
        "2 network calls (DDIM 1.037, the student 0.209)."
    )
    sentence = words.too_few_samples(report)[-1]  # an undecided answer is said there alone
    assert sentence.startswith(
        "2,000 samples cannot tell whether the student is better than the undistilled teacher at 1 network "
        "call (DDIM 3.81, the student 0.21): about "
    )


def test_without_baselines_nothing_is_said_of_them():
    content = evidence()
    content["rows"] = [row for row in content["rows"] if row["role"] != "baseline"]
    assert words.against_baselines(typed(content)) == ""


def test_samplers_that_tie_are_all_named():
    report = typed(evidence())  # one step of each solver is the same step
    best = words.rivals(report, report.students[-1])
    assert {row.sampler for row in best} == {"ddim", "dpmpp-2m", "heun"}
    content = against(evidence(), **{f"c{n}": (2.0, 0.1) for n in (8, 4, 2, 1)})
    rows_of(content, "student")[-1]["baseline"]["names"] = [row.name for row in best]
    text = words.against_baselines(typed(content))
    assert text.endswith("; DDIM, DPM-Solver++(2M) and Heun 3.81, the student 0.21).")


def test_nothing_says_that_a_good_student_is_not_worth_having():
    """Nearly as good as the teacher but no better than a solver, beside a blurred one that is better."""
    content = with_rows(**KEPT)
    content = against(content, c8=(1.05, 0.01), c4=(1.02, 0.01), c2=(0.3, 0.01), c1=(0.1, 0.01))
    report = typed(content)
    answers = [(answer.good_enough, answer.better) for answer in report.verdicts]
    assert answers == [("yes", "no"), ("yes", "no"), ("no", "yes"), ("no", "yes")]
    assert "worth" not in report.verdict and "not worth" not in report.headline


# ---- a poor teacher


def test_a_poor_teacher_is_said_first():
    content = with_rows(**{f"c{n}": (1.0, 0.01) for n in (8, 4, 2, 1)})
    content["measure"]["floor"] = 32.0
    content["rows"][0]["distances"]["frechet_distance"] = measured(519.0, 0.01)
    text = typed(content).verdict
    assert text.startswith(
        "The teacher itself is poor: its Fréchet distance is 519 (514 to 524), 16 times the 32.0 that "
        "perfect samples would score. A student that keeps its quality is poor as well: "
    )
    assert "keep the quality" not in text and "keeps the quality" not in text
    assert {answer.good_enough for answer in typed(content).verdicts} == {"poor teacher"}


def test_the_multiple_of_other_samples_is_not_said_of_their_floor():
    content = with_rows(**{f"c{n}": (1.0, 0.01) for n in (8, 4, 2, 1)})
    content["measure"] |= {"floor": 32.0, "samples": 500, "floor_at_2000": 8.0}
    content["rows"][0]["distances"]["frechet_distance"] = measured(519.0, 0.01)
    text = words.poor_teacher(typed(content))
    assert "is 519 (514 to 524); with 2,000 samples it would be 62 times that of perfect" in text
    assert pytest.approx(62, abs=0.5) == 1 + (519 - 32) / 8 and "32.0" not in text


# ---- too few samples


def test_it_is_said_how_many_samples_would_tell():
    content = with_rows(**KEPT | {"c2": (1.11, 0.03), "c1": (1.12, 0.03)})
    content = against(content, c8=(0.5, 0.1), c4=(0.5, 0.1), c2=(0.98, 0.05), c1=(0.5, 0.1))
    report = typed(content)
    good, better = words.too_few_samples(report)
    needed = [answer.good_samples for answer in report.verdicts[2:]]
    assert 2000 < needed[1] < needed[0] < 100_000
    first, last = (2000 * math.ceil(count / 2000) for count in sorted(needed))
    assert first < last and good == (
        "2,000 samples cannot tell whether the student is good enough at 2 and 1 network calls: about "
        f"{first:,} to {last:,} would, scored in blocks of 2,000 as the gate scores them."
    )
    assert "better than the undistilled teacher at 2 network calls (" in better
    enough = 2000 * math.ceil(report.verdicts[2].better_samples / 2000)
    assert f": about {enough:,} would, scored in blocks of 2,000 as" in better


@pytest.mark.parametrize("count, rounded", [(99, 99), (101, 110), (4521, 4600), (20_000, 20_000)])
def test_numbers_of_samples_are_rounded_up(count, rounded):
    assert words.rounded_up(count) == rounded


def test_what_no_number_of_samples_tells():
    content = with_rows(**KEPT | {"c4": (1.1, 0.05)})
    [sentence] = words.too_few_samples(typed(content))[:1]
    assert "more than 10,000,000 would" in sentence
