"""What the processes of one run tell one another beside their group.

A group is joined by all at once and says nothing of why one is missing.  A board, a store of torch's
that the launcher or the first process keeps, is there before it and after it: each process writes there
what it comes with, and why it ends.  Those that wait for it read that, and none waits for ever.
"""

import json
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from importlib.metadata import version
from typing import Any

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from halfstep.errors import ConfigError, HalfstepError
from halfstep.version import __version__

COMING = 600.0
"""Seconds in which all must have come: each reads its data before."""
PARTING = 3.0
"""Seconds that one that fails gives the others to fail alike, or to hear of it."""
LONGEST = 60
"""Characters of a value that are shown."""


def launched() -> tuple[int, int]:
    """This process's rank, and how many there are, as a launcher says; (0, 1) without one."""
    said = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    if said["WORLD_SIZE"] in (None, "1"):
        return 0, 1
    try:
        rank, world = int(said["RANK"] or ""), int(said["WORLD_SIZE"] or "")
    except ValueError:
        rank, world = 0, 0
    if not 0 <= rank < world:
        given = " and ".join(f"{name} {value or 'nothing'}" for name, value in said.items())
        raise ConfigError(f"the environment has {given}: launch with torchrun, which sets both")
    return rank, world


class Board:
    """Where each process of a program leaves a word for the others.

    A program may have several runs, one after another: `meet` begins each.

    parting  seconds for what is said as processes end
    """

    def __init__(self, store: Store, rank: int, world: int, parting: float = PARTING):
        self._store, self.rank, self.world, self.parting = store, rank, world, parting
        self._run, self._over = 0, False

    def meet(self, word: Mapping[str, Any], patience: float = COMING) -> None:
        """Begin a run with all others, who must come with the same word: else all refuse."""
        self._run, self._over = self._run + 1, False
        try:
            self._put("came", word)
            self._await("came", patience)
            words = [self._get("came", k) for k in range(self.world)]
        except RuntimeError:  # who kept the board has left
            raise HalfstepError(
                "the first process of this run has ended: see what it said, and start all of them again"
            ) from None
        refuse_others(words)

    def _await(self, what: str, patience: float) -> None:
        until = time.monotonic() + patience
        while not self._have(what):
            if self._store.check([self._key("ended")]):
                raise HalfstepError(self.reason() or "another process of this run has ended")
            if time.monotonic() > until:
                missing = [k for k in range(self.world) if not self._has(what, k)]
                raise HalfstepError(
                    f"{_named(missing)} of {self.world} did not come within {patience:g} seconds: see what "
                    "was said there, and start all of them again"
                )
            time.sleep(0.02)

    def end(self, said: str, *, cause: bool = True, patience: float | None = None) -> bool:
        """Say why this process ends the run; whether all others do as well, each for itself.

        cause  False where another process's end is the reason
        """
        self._run = max(self._run, 1)  # it may not even have come
        try:
            if not self._over:
                self._over = True
                self._put("ended", {"said": said, "cause": cause})
                self._store.set(self._key("ended"), "1")
            return self.all_end(patience)
        except RuntimeError:  # the board is gone, with the process that kept it
            return False

    def all_end(self, patience: float | None = None) -> bool:
        """Whether all processes say within this time that they end."""
        until = time.monotonic() + (self.parting if patience is None else patience)
        try:
            while not (all_do := self._have("ended")) and time.monotonic() < until:
                time.sleep(0.02)
        except RuntimeError:
            return False
        return all_do

    def reason(self) -> str:
        """Why the others have ended, in words; empty where none says so in time."""
        until = time.monotonic() + self.parting
        try:
            while True:
                for k in range(self.world):
                    if k != self.rank and self._has("ended", k):
                        said = self._get("ended", k)
                        if said["cause"]:
                            return f"process {k} of this run stopped: {said['said']}"
                if time.monotonic() >= until:
                    return ""
                time.sleep(0.02)
        except RuntimeError:
            return ""

    def _key(self, what: str) -> str:
        return f"{self._run}/{what}"

    def _put(self, what: str, word: Mapping[str, Any]) -> None:
        self._store.set(f"{self._key(what)}/{self.rank}", json.dumps(word, default=str))

    def _get(self, what: str, rank: int) -> dict[str, Any]:
        word: dict[str, Any] = json.loads(self._store.get(f"{self._key(what)}/{rank}"))
        return word

    def _has(self, what: str, rank: int) -> bool:
        return self._store.check([f"{self._key(what)}/{rank}"])

    def _have(self, what: str) -> bool:
        return self._store.check([f"{self._key(what)}/{k}" for k in range(self.world)])


_boards = list[Board]()
"""This program's, once it is opened."""


def board() -> Board:
    """This program's."""
    if not _boards:
        rank, world = launched()
        _boards.append(Board(_store(rank), rank, world))
    return _boards[0]


def tell(said: str) -> None:
    """Let the others know that this process ends, if only before it came to them.

    The first may keep the board, and stays until they have read it.
    """
    try:
        unmet, here = not _boards, board()
        here.end(said, patience=COMING if unmet and here.rank == 0 else None)
    except (RuntimeError, HalfstepError):  # nobody is there to hear it
        return


def _store(rank: int) -> Store:
    """The launcher's, or the first process's own."""
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
            timeout=timedelta(seconds=COMING),
            wait_for_workers=False,
            multi_tenant=True,  # the group's own is to be there, too
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise HalfstepError(
            f"the processes of this run cannot meet at {address}:{port} ({reason}): start all of them, each "
            "with another RANK, at a port that is free"
        ) from None
    store.set_timeout(timedelta(seconds=30))  # of an answer, once it is there
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"halfstep/{attempt}", store)


def versions() -> dict[str, str]:
    """Of what the numbers are computed with."""
    others = {name: version(name) for name in ("torch", "diffusers", "numpy")}
    return {"halfstep": __version__, **others, "python": platform.python_version()}


def refuse_others(words: Sequence[Mapping[str, Any]]) -> None:
    """`ConfigError` that names the first thing in which the words of the processes differ."""
    flat = [{name: json.dumps(value) for name, value in _flat(word)} for word in words]
    for name in dict.fromkeys(name for word in flat for name in word):
        values = [word.get(name, "nothing") for word in flat]
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


def _flat(word: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Every value under one name: pipeline.schedule.name."""
    for name, value in word.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _shown(values: list[str]) -> dict[str, str]:
    """The values, long ones from shortly before where they differ."""
    at = 0
    while len({value[: at + 1] for value in values}) == 1:
        at += 1
    low = max(0, at - LONGEST // 3) if max(map(len, values)) > LONGEST else 0
    return {
        value: f"{'...' * (low > 0)}{value[low : low + LONGEST]}{'...' * (len(value) > low + LONGEST)}"
        for value in values
    }


def _named(ranks: Iterable[int]) -> str:
    """process 1; processes 1, 2 and 3."""
    *most, last = map(str, ranks)
    if len(most) > 8:
        return f"{len(most) + 1} processes, the first of them {most[0]}"
    return f"processes {', '.join(most)} and {last}" if most else f"process {last}"
