"""The command again after Ctrl-C, a preemption or a kill ends at the same bits."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from halfstep.cli import main
from halfstep.errors import ConfigError
from halfstep.training.run_folder import RunFolder
from tests.support.runs import (
    bits,
    logged_lines,
)

UPDATES = 150


def command(out, teacher):
    """A run of three halvings, long enough to be caught in the middle of."""
    options = {
        "batch_size": "3",
        "save-every": "7",
        "log-every": "11",
        "ema": ".9",
        "device": "cpu",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    words += ["--out", str(out), "--start", "8", "--updates", *[str(UPDATES)] * 3]
    words += ["--tolerance", "0"]
    return ["distill", "progressive", "--teacher", str(teacher), "--data", "two-moons", *words]


@contextmanager
def started(arguments):
    """The command line in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "halfstep", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(process, happened, seconds=120):
    until = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.002)


def newest(out):
    return max((path.name for path in (out / "checkpoints").glob("*.json")), default="")


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    """A teacher of the two moons, barely trained."""
    out = tmp_path_factory.mktemp("moons") / "teacher"
    net = ["--net", "mlp", "--net-config", "width", "8", "depth", "1", "--device", "cpu"]
    words = ["--data", "two-moons", "--out", str(out), *net, "--updates", "2", "--batch-size", "4"]
    assert main(["train", "denoiser", *words]) == 0
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory, moons):
    """The command, never disturbed."""
    out = tmp_path_factory.mktemp("alone") / "r"
    assert main(command(out, moons)) == 0
    return out


class TestProcesses:
    @pytest.mark.slow
    def test_killed_at_random_moments(self, tmp_path, moons, alone):
        """kill -9; the same command again ends at the bits of a run left alone."""
        seed = random.SystemRandom().randrange(2**32)
        chance, out, reached = random.Random(seed), tmp_path / "r", []
        print(f"random seed {seed}")
        every = [f"{k:02d}-{n:08d}.json" for k in range(3) for n in range(7, UPDATES, 7)]
        part = len(every) // 4
        for moment in [chance.randrange(k * part, (k + 1) * part) for k in range(3)]:
            with started(command(out, moons)) as process:
                wait_for(process, lambda moment=moment: newest(out) >= every[moment])
                time.sleep(chance.random() / 20)
                process.kill()
                assert process.wait() == -signal.SIGKILL
            reached.append(newest(out))
        print(f"killed at {reached}")
        assert reached == sorted(set(reached))
        with started(command(out, moons)) as process:
            _, err = process.communicate()
            assert process.returncode == 0, err
        assert bits(out) == bits(alone) and len(bits(out)) == 3
        assert logged_lines(out) == logged_lines(alone)

    @pytest.mark.parametrize(
        "stop_signal", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
    )
    def test_asked_to_stop_killed_and_alone_on_its_folder(
        self, tmp_path, moons, alone, capfd, stop_signal
    ):
        """Asked to stop it says so; killed it cannot; the same command ends at the same bits."""
        out, newest_names = tmp_path / "r", []
        for number in (stop_signal, signal.SIGKILL):
            with started(command(out, moons)) as process:
                before = newest(out)
                wait_for(process, lambda before=before: newest(out) != before)
                capfd.readouterr()
                assert main(command(out, moons)) == 2  # a second process
                errors = capfd.readouterr().err.strip().splitlines()
                assert errors == [
                    f"halfstep: another process is working on '{out}': wait for it, or choose another "
                    "--out"
                ]
                process.send_signal(number)
                _, err = process.communicate(timeout=60)
                if number == signal.SIGKILL:
                    assert process.returncode == -number
                    continue
                assert process.returncode == 130
                assert len(err.strip().splitlines()) == 1 and "Traceback" not in err
                assert err.startswith("halfstep: stopped at update ")
                assert err.endswith("run the same command again to go on\n")
            newest_names.append(newest(out))
        assert newest_names and newest(out) > newest_names[0]
        # The lock died with the process: this one goes on where it was, to the same bits.
        assert main(command(out, moons)) == 0
        assert bits(out) == bits(alone)

    def test_two_runs_of_one_process(self, tmp_path):
        run = RunFolder.begin(tmp_path / "r", "distill own", {})
        with pytest.raises(ConfigError, match="another process is working on"):
            RunFolder.begin(tmp_path / "r", "distill own", {})
        run.close()
        RunFolder.begin(tmp_path / "r", "distill own", {}).close()
