"""Messages between the processes of a run, outside their process group.

All processes join a group at once, and it does not say why one is missing.  A board is a store of torch's
that the launcher or the first process keeps, and exists before and after the group: each process writes
there what it is started with, and why it ends.  The processes that wait for it read that, and none waits
for ever.
"""

import json
import os
import platform
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from importlib.metadata import version

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from halfstep.config import JsonObject
from halfstep.errors import ConfigError, HalfstepError
from halfstep.training.run_identity import dotted
from halfstep.version import __version__

ARRIVAL_SECONDS = 600.0
"""Time for all processes to arrive: each reads its data before."""
EXIT_SECONDS = 3.0
"""Time that a failing process gives the others to fail too, or to read why it fails."""
SHOWN_CHARACTERS = 60
"""Characters of a value that are shown."""


def launched() -> tuple[int, int]:
    """Rank of this process and number of processes, as the launcher sets them; (0, 1) without one."""
    variables = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    if variables["WORLD_SIZE"] in (None, "1"):
        return 0, 1
    try:
        rank, world = int(variables["RANK"] or ""), int(variables["WORLD_SIZE"] or "")
    except ValueError:
        rank, world = 0, 0
    if not 0 <= rank < world:
        values = " and ".join(f"{name} {value or 'nothing'}" for name, value in variables.items())
        raise ConfigError(f"the environment has {values}: launch with torchrun, which sets both")
    return rank, world


class Board:
    """A store where each process of a program leaves messages for the others.

    A program may have several runs, one after another: `meet` begins each.

    exit_seconds  time to wait for messages as processes end
    """

    def __init__(self, store: Store, rank: int, world: int, exit_seconds: float = EXIT_SECONDS):
        self._store, self.rank, self.world, self.exit_seconds = store, rank, world, exit_seconds
        self._run, self._over = 0, False

    def meet(self, message: JsonObject, patience: float = ARRIVAL_SECONDS) -> None:
        """Begin a run with all other processes; all refuse unless their messages are equal."""
        self._run, self._over = self._run + 1, False
        try:
            self._put("came", message)
            self._await("came", patience)
            messages = [self._get("came", k) for k in range(self.world)]
        except RuntimeError:  # the process that kept the board has ended
            raise HalfstepError(
                "the first process of this run has ended: read its error message, and start all of them again"
            ) from None
        refuse_different(messages)

    def _await(self, topic: str, patience: float) -> None:
        until = time.monotonic() + patience
        while not self._have(topic):
            if self._store.check([self._key("ended")]):
                raise HalfstepError(self.reason() or "another process of this run has ended")
            if time.monotonic() > until:
                missing = [k for k in range(self.world) if not self._has(topic, k)]
                raise HalfstepError(
                    f"{_named(missing)} of {self.world} did not come within {patience:g} seconds: read "
                    "their error messages, and start all of them again"
                )
            time.sleep(0.02)

    def end(self, reason: str, *, cause: bool = True, patience: float | None = None) -> bool:
        """Write why this process ends the run; return whether all others end it too.

        cause  False where another process's end is the reason
        """
        self._run = max(self._run, 1)  # it may not have arrived yet
        try:
            if not self._over:
                self._over = True
                self._put("ended", {"reason": reason, "cause": cause})
                self._store.set(self._key("ended"), "1")
            return self.all_end(patience)
        except RuntimeError:  # the board is gone, with the process that kept it
            return False

    def all_end(self, patience: float | None = None) -> bool:
        """Whether all processes write within this time that they end."""
        until = time.monotonic() + (self.exit_seconds if patience is None else patience)
        try:
            while not (all_do := self._have("ended")) and time.monotonic() < until:
                time.sleep(0.02)
        except RuntimeError:
            return False
        return all_do

    def reason(self) -> str:
        """Why the others have ended, in words; empty where none says so in time."""
        until = time.monotonic() + self.exit_seconds
        try:
            while True:
                for k in range(self.world):
                    if k != self.rank and self._has("ended", k):
                        message = self._get("ended", k)
                        if message["cause"]:
                            return f"process {k} of this run stopped: {message['reason']}"
                if time.monotonic() >= until:
                    return ""
                time.sleep(0.02)
        except RuntimeError:
            return ""

    def _key(self, topic: str) -> str:
        return f"{self._run}/{topic}"

    def _put(self, topic: str, message: JsonObject) -> None:
        self._store.set(f"{self._key(topic)}/{self.rank}", json.dumps(message, default=str))

    def _get(self, topic: str, rank: int) -> JsonObject:
        message: JsonObject = json.loads(self._store.get(f"{self._key(topic)}/{rank}"))
        return message

    def _has(self, topic: str, rank: int) -> bool:
        return self._store.check([f"{self._key(topic)}/{rank}"])

    def _have(self, topic: str) -> bool:
        return self._store.check([f"{self._key(topic)}/{k}" for k in range(self.world)])


_boards = list[Board]()
"""The board of this program, once it is opened."""


def board() -> Board:
    """The board of this program."""
    if not _boards:
        rank, world = launched()
        _boards.append(Board(_store(rank), rank, world))
    return _boards[0]


def tell(reason: str) -> None:
    """Tell the other processes that this one ends, even before it has met them.

    The first process may keep the board, and waits until the others have read it.
    """
    try:
        unmet, opened = not _boards, board()
        opened.end(reason, patience=ARRIVAL_SECONDS if unmet and opened.rank == 0 else None)
    except (RuntimeError, HalfstepError):  # no other process is there
        return


def _store(rank: int) -> Store:
    """The launcher's store, or the first process's own."""
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not address or not port.isdecimal():
        raise ConfigError(
            f"the environment has MASTER_ADDR {address or 'nothing'} and MASTER_PORT {port or 'nothing'}: "
            "launch with torchrun, which sets both"
        )
    keeps = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = TCPStore(
            address,
            int(port),
            is_master=keeps,
            timeout=timedelta(seconds=ARRIVAL_SECONDS),
            wait_for_workers=False,
            multi_tenant=True,  # the group's own store shares the port
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise HalfstepError(
            f"the processes of this run cannot meet at {address}:{port} ({reason}): start all of them, each "
            "with another RANK, at a port that is free"
        ) from None
    store.set_timeout(timedelta(seconds=30))  # of a value that is there
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"halfstep/{attempt}", store)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute the numbers."""
    others = {name: version(name) for name in ("torch", "diffusers", "numpy")}
    return {"halfstep": __version__, **others, "python": platform.python_version()}


def refuse_different(messages: Sequence[JsonObject]) -> None:
    """`ConfigError` that names the first value in which the messages of the processes differ."""
    flat = [{name: json.dumps(value) for name, value in dotted(each)} for each in messages]
    for name in dict.fromkeys(name for each in flat for name in each):
        values = [each.get(name, "nothing") for each in flat]
        if len(set(values)) == 1:
            continue
        listed = ", ".join(
            f"{shown} in {_named([k for k, value in enumerate(values) if value == each])}"
            for each, shown in _shown(list(dict.fromkeys(values))).items()
        )
        raise ConfigError(
            f"the processes of this run differ in {name}: {listed}; start all of them with the same "
            "options, data, weights and versions"
        )


def _shown(values: list[str]) -> dict[str, str]:
    """The values as they are shown: long ones from shortly before the first difference on."""
    start, most = 0, SHOWN_CHARACTERS
    while len({value[: start + 1] for value in values}) == 1:
        start += 1
    low = max(0, start - most // 3) if max(map(len, values)) > most else 0
    high = low + most
    return {
        value: f"{'...' * (low > 0)}{value[low:high]}{'...' * (len(value) > high)}"
        for value in values
    }


def _named(ranks: Iterable[int]) -> str:
    """process 1; processes 1, 2 and 3."""
    *most, last = map(str, ranks)
    if len(most) > 8:
        return f"{len(most) + 1} processes, the first of them {most[0]}"
    return f"processes {', '.join(most)} and {last}" if most else f"process {last}"
