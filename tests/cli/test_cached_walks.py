"""`halfstep distill cached-walks`: a dry run says walks and disk, a run walks once, others are refused."""

from halfstep.data.walks.store import open_walks
from halfstep.methods import CachedWalks
from halfstep.methods.stages import cost_after
from halfstep.pipeline import Pipeline
from halfstep.training.run_folder import RunFolder
from tests.cli.commands import SHIPPED
from tests.support.runs import bits, refused

QUICK = ["--start", 4, "--first", 2, "--updates", 2, "--noises", 20, "--batch-size", 4]


def distil(*words, out="run", data="none"):
    return [
        "distill", "cached-walks", "--teacher", SHIPPED, "--data", data, "--device", "cpu", "--out", out,
        *QUICK, *words,
    ]  # fmt: skip


def test_a_dry_run_says_walks_cost_and_disk(cli, tmp_path):
    status, out, err = cli(*distil("--dry-run"))
    assert status == 0, err
    # Heun in 4 steps calls 7 times; 3 kept points of 64 values, and a label.
    assert "20 of the teacher, 7 forwards each by heun, 15.5 kB on the disk" in out
    assert "188" in out  # 20 * 7 + 4 * 2 * 3 * 2, for two updates become four at 2 steps
    assert not (tmp_path / "run").exists()


def test_a_run_walks_once_and_another_goes_on_from_its_walks(cli, tmp_path):
    status, out, err = cli(*distil())
    assert status == 0, err
    assert "walking 20 noises, 7 forwards each" in out
    assert "2 and 1 steps along 4 of the teacher by heun" in out
    assert RunFolder("run").config["noises"] == 20
    before = bits(tmp_path / "run")
    status, out, err = cli(*distil("--walks", "run/walks", out="again"))
    assert status == 0, err
    assert bits(tmp_path / "again") == before
    assert len(open_walks("run/walks")) == 20
    assert not (tmp_path / "again" / "walks").exists()
    assert cli(*distil("--walks", "run/walks", "--noises", 24, out="more"))[0] == 0
    assert len(open_walks("run/walks")) == 24
    assert refused(
        cli(*distil("--walks", "run/walks", "--solver", "ddim", out="other")),
        "holds walks with another solver (heun, now ddim): choose another folder",
    )


def test_walks_are_in_every_cost_that_is_told(cli):
    """20 walks of 14 forwards, with guidance, 4 of 14 more for each student; 3 a sample of an update."""
    words = ["--guidance-scale", 2, "--new-noises", 4]
    _, planned, _ = cli(*distil(*words, "--dry-run"))
    lines = [line.split() for line in planned.splitlines() if "-steps " in line]
    assert [int(line[2]) for line in lines] == [24 * 14 + 48, 4 * 14 + 48]
    assert cli(*distil(*words))[0] == 0
    run = RunFolder.open("run")
    assert run.cost["forwards"] == 28 * 14 + 96
    method = CachedWalks(
        start=4, first=2, updates=(2,), noises=20, new_noises=4, guidance_scale=2.0
    )
    teacher = Pipeline.load(SHIPPED)
    plan = method.plan(teacher)
    assert method.cost(teacher, 4) == 28 * 14 + 96
    assert cost_after(plan, "0002-steps", 4) == (4 * 14 + 48) / 4
    assert [stage["once"] for stage in run.about["plan"]["stages"]] == [24 * 14, 4 * 14]


def test_guidance_is_folded_in(cli):
    status, out, err = cli(*distil("--guidance-scale", 2, out="guided"))
    assert status == 0, err
    assert "walking 20 noises, 14 forwards each" in out
    assert Pipeline.load("guided/stages/0001-steps").guidance_range == (2.0, 2.0)
    status, out, err = cli(
        "sample", "guided", "--steps", 1, "--guidance-scale", 2, "--n", 2, "--out", "s"
    )
    assert status == 0, err


def test_what_cannot_be_is_refused_before_there_is_a_folder(cli, tmp_path):
    for words, says in (
        (["--solver", "ancestral"], "draws noise at its steps"),
        (["--start", "5"], "multiple"),
        (["--shard"], "there is no option --shard"),
    ):
        assert refused(cli(*distil(*words)), says)
    assert refused(cli(*distil(data="none:student")), "write --data none")
    assert not (tmp_path / "run").exists()
