"""`halfstep runs`: the table, the sentence about damage, the page, and the next command."""

from tests.cli.commands import halving


def test_runs(cli, moons, tmp_path):
    assert cli(*halving(moons, tmp_path / "runs" / "a b", "--stop", 2, "--tolerance", 0))[0] == 0
    (tmp_path / "runs" / "c").mkdir()
    (tmp_path / "runs" / "c" / "run.json").write_text("{")
    status, out, _ = cli("runs", "runs", "--html")
    head, a, c, damage, page, after = out.splitlines()
    heads = "run method steps kept ratio to teacher state time left"
    assert status == 0 and " ".join(head.split()) == heads
    assert a.split() == ["a", "b", "progressive", "2", "finished"]
    assert c.split() == ["c", "damaged"] and damage.startswith(
        "damaged   'runs/c/run.json' is damaged"
    )
    assert page.split() == ["page", "runs/runs.html"] and (tmp_path / "runs" / "runs.html").exists()
    assert after == "next      halfstep evaluate 'runs/a b'"


def test_a_folder_without_runs_is_one_sentence(cli, tmp_path):
    (tmp_path / "empty").mkdir()
    status, out, err = cli("runs", "empty")
    assert status == 2 and not out and err.count("\n") == 1 and "holds no runs" in err


def test_watching_ends_when_nothing_runs(cli, moons, monkeypatch):
    from halfstep.cli.commands import runs
    from halfstep.folder_lock import FolderLock

    lock, waits = FolderLock(moons), []

    def sleep(seconds):
        waits.append(seconds)
        lock.close()

    monkeypatch.setattr(runs.time, "sleep", sleep)
    try:
        status, out, _ = cli("runs", moons, "--watch")
    finally:
        lock.close()
    assert status == 0 and waits == [runs.REFRESH]
    assert out.count("running") == 1 and out.count("finished") == 1


def test_the_next_command(cli, moons, tmp_path):
    """Of a stopped run its own command; its options are in config.toml."""
    from halfstep.cli.commands.runs import next_command
    from halfstep.workflows.runs import RunRow

    def row(name, **options):
        return RunRow(
            **{"folder": tmp_path / name, "name": name, "method": "distill guided", **options}
        )

    stopped = row("s", state="stopped")
    stopped.folder.mkdir()
    wanted = "halfstep distill progressive --teacher TEACHER --data DATA --start 64 --out STUDENT"
    assert next_command([stopped], tmp_path) == wanted  # a run from Python
    (stopped.folder / "config.toml").touch()
    wanted = f"halfstep distill guided --config {tmp_path}/s/config.toml"
    assert next_command([stopped], tmp_path) == wanted
    running = row("r", state="running", steps=4)
    assert next_command([running], tmp_path) == f"halfstep runs {tmp_path} --watch"
    done = row("d", state="finished", steps=4, report=tmp_path / "x")
    assert (
        next_command([done], tmp_path) == f"halfstep export {tmp_path}/d --out {tmp_path}/d-4-steps"
    )
