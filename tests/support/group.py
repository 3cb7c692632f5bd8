"""Commands of several processes: forked from one program, so that torch is imported once; or threads.

`python -m tests.support.group WORLD FOLDER COMMANDS` types each command (JSON) in WORLD gloo processes.
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from contextlib import nullcontext
from pathlib import Path

import torch

from halfstep.errors import HalfstepError
from halfstep.training import divided
from halfstep.training.peers import refuse_different

ROOT = Path(__file__).parents[2]


def typed(folder, *commands, world=2, killed=None, last=()):
    """The exit statuses, outputs and errors of each process that was typed these commands in a folder.

    killed  the rank of a process that is killed in its second share of the work; it has none
    last    words that the last process is typed besides
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"TORCH_CPP_LOG_LEVEL": "ERROR", "KILLED": str(killed)}
    environment["LAST"] = json.dumps([str(word) for word in last])
    words = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.group", str(world), str(folder), words],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = (Path(folder, f"done-{rank}.json") for rank in range(world) if rank != killed)
    return [json.loads(file.read_text()) for file in files]


def main(world, folder, words):
    """Fork the processes, and wait for all."""
    import accelerate  # noqa: F401
    import torch.distributed.nn.functional  # noqa: F401

    import halfstep.workflows.evaluate
    import halfstep.workflows.latents
    import halfstep.workflows.sample  # noqa: F401

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.chdir(folder)
    children = []
    for rank in range(world):
        if not (pid := os.fork()):
            more = json.loads(os.environ["LAST"]) if rank == world - 1 else []
            _one(rank, [[*command, *more] for command in json.loads(words)])
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)


def _one(rank, commands):
    from halfstep.cli import main as cli

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    if os.environ["KILLED"] == str(rank):
        _killed_in_its_second_share()
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}-{rank}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), number)
    warnings.simplefilter("error")
    statuses = []
    try:
        for command in commands:
            statuses.append(cli(command))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        out, err = (Path(f"{name}-{rank}").read_text() for name in ("out", "err"))
        result = {"status": statuses, "out": out, "err": err}
        Path(f"done-{rank}.json").write_text(json.dumps(result))
        try:
            atexit._run_exitfuncs()
        finally:
            os._exit(0)


def _killed_in_its_second_share():
    real, calls = divided._done, []

    def done(*args):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    divided._done = done


class _Member:
    """`Processes` of a thread: what `Divided` and the workflows call."""

    def __init__(self, rank, world, barrier, slots):
        self.rank, self.world, self.device = rank, world, torch.device("cpu")
        self._barrier, self._slots = barrier, slots

    @property
    def first(self):
        return self.rank == 0

    def _exchange(self, value):
        """The values of all."""
        self._slots[self.rank] = value
        self._barrier.wait(20)
        values = list(self._slots)
        self._barrier.wait(20)
        return values

    def deal(self, values):
        return self._exchange(values)[0][self.rank]

    def collect(self, value):
        values = self._exchange(value)
        return values if self.first else []

    def compare(self, values):
        refuse_different(self._exchange(values))

    def together(self):
        return nullcontext()

    def run_on_first(self, act):
        result, error = None, None
        if self.first:
            try:
                result = act()
            except Exception as raised:
                error = raised
        result, error = self._exchange((result, error))[0]
        if error is not None:
            raise error if self.first or isinstance(error, HalfstepError) else HalfstepError(error)
        return result


def in_threads(act, world=2):
    """What `act(processes)` returns or raises in each of several threads that stand for processes."""
    barrier, slots, results = threading.Barrier(world), [None] * world, [None] * world

    def run(rank):
        try:
            results[rank] = act(_Member(rank, world, barrier, slots))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "one of them waits for ever"
    return results


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
