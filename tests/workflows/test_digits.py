"""The main job on real data, held to its numbers: three distillations of the shipped teacher."""

import json

import pytest

from halfstep.workflows.demo import DemoConfig, prepare_demo

HELD_TO = {8: 1.03, 4: 1.04, 2: 1.06, 1: 1.10}
"""Student's Fréchet distance over its teacher's at 64 steps, mean of three distillations."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    results = []
    for seed in (0, 1, 2):
        out = tmp_path_factory.mktemp(f"digits{seed}")
        demo = prepare_demo(DemoConfig(out=out, seed=seed, device="cpu"))
        demo.evaluate(*demo.distill())
        results.append(json.loads((out / "results.json").read_text()))
    return results


def rows(result, name, **wanted):
    return [r for r in result[name] if all(r[key] == value for key, value in wanted.items())]


@pytest.mark.slow
def test_the_teacher_is_good_and_does_not_memorise(runs):
    teacher = runs[0]["teacher"]
    assert (teacher["sampler"], teacher["steps"], teacher["calls"]) == ("ddim", 64, 64)
    assert runs[0]["sampling_floor"] < teacher["frechet_distance"] <= 0.33
    assert teacher["rmse_to_teacher"] == 0


def mean_ratio(runs, calls):
    ratios = [
        rows(r, "students", calls=calls)[0]["frechet_distance"] / r["teacher"]["frechet_distance"]
        for r in runs
    ]
    return sum(ratios) / len(ratios)


@pytest.mark.slow
@pytest.mark.parametrize("calls", HELD_TO)
def test_students_keep_their_teachers_quality(runs, calls):
    assert mean_ratio(runs, calls) <= HELD_TO[calls]


@pytest.mark.slow
@pytest.mark.parametrize("calls", HELD_TO)
def test_students_beat_the_teacher_at_equal_calls(runs, calls):
    for result in runs:
        [student] = rows(result, "students", calls=calls)
        for sampler in ("ddim", "dpmpp-2m") if calls < 8 else ("ddim",):
            [other] = rows(result, "baselines", calls=calls, sampler=sampler)
            assert student["frechet_distance"] < other["frechet_distance"]
            assert student["rmse_to_teacher"] < other["rmse_to_teacher"]


@pytest.mark.slow
def test_what_the_halvings_cost_is_what_the_readme_says(runs):
    """Forwards over the teacher's: the paper has 1 at most."""
    for result in runs:
        cost = result["cost"]
        assert cost["halvings"]["forwards"] == 460_672
        assert cost["teacher"]["forwards"] == 768_000
