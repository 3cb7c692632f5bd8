"""Two real processes of which one has other options, refuses, fails, is killed or hangs: no one waits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import bits

AT, UPDATES = 7, 12
"""The update in which one of them fails; the last that is saved before is the sixth."""
LONGEST = 120
"""Seconds after which scenarios that are begun together are taken to hang."""

SCRIPT = '''
"""Scenarios, each of two processes that are forked from this one, so that torch is imported once."""

import atexit, datetime, json, os, signal, socket, sys, time, traceback, warnings
from pathlib import Path

import accelerate, diffusers, torch, torch.distributed.nn.functional

import halfstep.workflows.train_denoiser, halfstep.training.loop as loop
from halfstep.cli import main
from halfstep.data import load
from halfstep.errors import DataError

COMMAND = (
    "train denoiser --data two-moons --net mlp --net-config width 8 depth 1 --batch-size 8 --device cpu "
    f"--updates {UPDATES} --log-every 1 --save-every 2 --out run"
)


load("two-moons")  # sklearn is imported here and not in every child: four times their work


def damaged():
    raise DataError("image 7 is damaged")


def hang():
    os.kill(os.getpid(), signal.SIGSTOP)


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


SHARD = ("--shard", "--shard")
# What is typed besides, by rank; and what one of them does in an update.
SCENARIOS = {
    "whole": (("", ""), None, None),
    "again": (("", ""), None, None),
    "first again": (("", ""), None, None),
    "differs": (("", "--seed 5"), None, None),
    "rehearses": (("--dry-run", ""), None, None),
    "refuses": (("", "--learning-rate nonsense"), None, None),
    "first refuses": (("--data nonsense", ""), None, None),
    "helped": (("", "--help"), None, None),
    "killed": (("", ""), 1, killed),
    "first killed": (("", ""), 0, killed),
    "fails": (("", ""), 1, damaged),
    "first fails": (("", ""), 0, damaged),
    "hangs": (("", ""), 1, hang),
    "sharded": (SHARD, None, None),
    "sharded again": (SHARD, None, None),
    "sharded first again": (SHARD, None, None),
    "sharded killed": (SHARD, 1, killed),
    "sharded first killed": (SHARD, 0, killed),
    "sharded fails": (SHARD, 1, damaged),
    "one shards": (("--shard", ""), None, None),
}
FOLDERS = {
    "again": "killed", "first again": "first killed",
    "sharded again": "sharded killed", "sharded first again": "sharded first killed",
}


def one(name, rank):
    """The exit status of one process of a scenario."""
    typed, who, act = SCENARIOS[name]
    real, calls = loop.update, []

    def update(*given, **options):
        calls.append(1)
        if len(calls) == AT and act is hang:
            torch.distributed.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=2))
        if len(calls) == AT and rank == who:
            act()
        return real(*given, **options)

    loop.update = update
    status = main([*COMMAND.split(), *typed[rank].split()])
    other = Path(f"err-{1 - rank}")
    for _ in range(1000 if rank == who else 0):  # it lives on: the other is not to wait for its end
        if "halfstep: " in other.read_text():
            return status
        time.sleep(0.05)
    return status if rank != who else 98


def child(name, rank, port, folder):
    for key in ("RANK", "LOCAL_RANK"):
        os.environ[key] = str(rank)
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.chdir(folder)
    for number, what in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{what}-{rank}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), number)
    warnings.simplefilter("error")
    status = 99
    try:
        status = one(name, rank)
    except SystemExit as left:
        status = left.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        try:
            atexit._run_exitfuncs()
        finally:
            os._exit(status)


def begin(name):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(sys.argv[1], FOLDERS.get(name, name))
    folder.mkdir(exist_ok=True)
    for rank in (0, 1):
        Path(folder, f"err-{rank}").write_text("")
    children = []
    for rank in (0, 1):
        if not (pid := os.fork()):
            child(name, rank, port, folder)
        children.append(pid)
    return children, folder


found = {}
for wave in json.loads(sys.argv[2]):
    begun, until = {name: begin(name) for name in wave}, time.monotonic() + LONGEST
    waiting = {(name, rank) for name in wave for rank in (0, 1)}
    found |= {name: {"status": ["hangs", "hangs"]} for name in wave}
    while waiting - {("hangs", 1)} and time.monotonic() < until:
        for name, rank in sorted(waiting):
            pid, status = os.waitpid(begun[name][0][rank], os.WNOHANG)
            if pid:
                found[name]["status"][rank] = os.waitstatus_to_exitcode(status)
                waiting.remove((name, rank))
        time.sleep(0.02)
    for name, rank in waiting:
        os.kill(begun[name][0][rank], signal.SIGKILL)
    for name in wave:
        folder = begun[name][1]
        found[name]["err"] = [Path(folder, f"err-{rank}").read_text() for rank in (0, 1)]
Path(sys.argv[1], "found.json").write_text(json.dumps(found))
'''


def happened(folder, *waves):
    """What each scenario ended in: both exit statuses and what both said."""
    script = folder / "script.py"
    constants = f"AT, LONGEST, UPDATES = {AT}, {LONGEST}, {UPDATES}\n"
    script.write_text(constants + SCRIPT)
    root = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": root,
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    command = [sys.executable, str(script), str(folder), json.dumps(waves)]
    limit = 60 + LONGEST * len(waves)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


def one_sentence(message, *words):
    """Whether that was said, and nothing else."""
    assert message.startswith("halfstep: ") and message.count("\n") == 1, message
    for word in words:
        assert word in message
    return True


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick")
    return happened(folder, ["differs", "refuses", "killed", "fails"]), folder


@pytest.fixture(scope="module")
def rest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rest")
    waves = (["whole", "first refuses", "helped", "rehearses"], ["killed", "first killed"])
    return happened(folder, *waves, ["again", "first again"], ["first fails", "hangs"]), folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    waves = (["sharded", "sharded fails", "one shards"], ["sharded killed", "sharded first killed"])
    return happened(folder, *waves, ["sharded again", "sharded first again"]), folder


class TestQuick:
    def test_another_seed_is_refused_by_both_before_there_is_a_folder(self, quick):
        results, folder = quick
        assert results["differs"]["status"] == [2, 2]
        first, second = results["differs"]["err"]
        assert one_sentence(first, "seed", "0 in process 0", "5 in process 1") and first == second
        assert not (folder / "differs" / "run").exists()

    def test_who_refuses_before_the_group_is_there_is_not_waited_for(self, quick):
        results, folder = quick
        assert results["refuses"]["status"] == [2, 2]
        assert one_sentence(results["refuses"]["err"][0], "process 1", "--learning-rate")
        assert one_sentence(results["refuses"]["err"][1], "--learning-rate")
        assert not (folder / "refuses" / "run").exists()

    def test_one_that_is_killed_ends_the_other_in_a_sentence(self, quick):
        results, _ = quick
        assert results["killed"]["status"] == [2, -9]
        assert one_sentence(results["killed"]["err"][0], "gone")

    def test_why_one_failed_is_said_by_the_other_while_it_lives_on(self, quick):
        results, folder = quick
        assert results["fails"]["status"] == [2, 2]
        assert one_sentence(results["fails"]["err"][0], "process 1", "image 7")
        assert one_sentence(results["fails"]["err"][1], "image 7")
        checkpoints = sorted(
            path.stem for path in (folder / "fails" / "run" / "checkpoints").glob("*.json")
        )
        assert checkpoints[-1] == f"00-{AT - 1:08d}"


@pytest.mark.slow
class TestRest:
    @pytest.mark.parametrize(
        "name, status, words",
        [
            ("first refuses", [2, 2], ["nonsense"]),
            ("first fails", [2, 2], ["image 7"]),
            ("rehearses", [2, 2], ["dry_run"]),
        ],
    )
    def test_both_end_with_the_same_reason(self, rest, name, status, words):
        assert rest[0][name]["status"] == status
        assert all(one_sentence(message, *words) for message in rest[0][name]["err"])

    @pytest.mark.parametrize(
        "who, name, again", [(1, "killed", "again"), (0, "first killed", "first again")]
    )
    def test_one_is_killed_and_the_same_command_goes_on_to_the_same_bits(
        self, rest, who, name, again
    ):
        results, folder = rest
        assert results[name]["status"][who] == -9 and results[name]["status"][1 - who] == 2
        assert one_sentence(results[name]["err"][1 - who], "gone")
        assert results["whole"] == results[again] == {"status": [0, 0], "err": ["", ""]}
        lines = (folder / name / "run" / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == UPDATES + 1
        assert bits(folder / name / "run") == bits(folder / "whole" / "run") != {}

    def test_one_that_only_shows_help_is_not_waited_for(self, rest):
        assert rest[0]["helped"]["status"] == [2, 0]
        assert one_sentence(rest[0]["helped"]["err"][0], "process 1")

    def test_one_that_hangs_is_not_waited_for_longer_than_the_group_allows(self, rest):
        assert rest[0]["hangs"]["status"][0] == 2
        assert one_sentence(rest[0]["hangs"]["err"][0], "answers")


@pytest.mark.slow
class TestSharded:
    """The others wait in the forward or backward of a network of which they have a part."""

    @pytest.mark.parametrize(
        "who, name, again",
        [
            (1, "sharded killed", "sharded again"),
            (0, "sharded first killed", "sharded first again"),
        ],
    )
    def test_one_is_killed_and_the_same_command_goes_on_to_the_same_bits(
        self, sharded, who, name, again
    ):
        results, folder = sharded
        assert results[name]["status"][who] == -9 and results[name]["status"][1 - who] == 2
        assert one_sentence(results[name]["err"][1 - who], "gone")
        assert results["sharded"] == results[again] == {"status": [0, 0], "err": ["", ""]}
        assert bits(folder / name / "run") == bits(folder / "sharded" / "run") != {}

    def test_why_one_failed_is_said_by_the_other(self, sharded):
        results, _ = sharded
        assert results["sharded fails"]["status"] == [2, 2]
        assert one_sentence(results["sharded fails"]["err"][0], "process 1", "image 7")

    def test_one_that_does_not_shard_is_refused_by_both(self, sharded):
        results, folder = sharded
        assert results["one shards"]["status"] == [2, 2]
        assert all(one_sentence(err, "shard") for err in results["one shards"]["err"])
        assert not (folder / "one shards" / "run").exists()
