"""Mutants run: on copies in a temporary folder, two at a time."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from tests.mutants.mutant import Mutant, ROOT

WORKERS = 2
SERVER = Path(__file__).with_name("server.py")
SECONDS = "seconds.json"  # what each test took, as the server writes it


def copied(to: Path) -> Path:
    """The package and the tests in a folder of their own."""
    for name in ("halfstep", "tests"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", to)
    return to


class Place:
    """A folder with a copy of the package and the tests, and a process that runs tests there."""

    def __init__(self, folder: Path):
        # Without bytecode: Python would take a mutant of the same size and second for the original.
        env = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        env["MKL_CBWR"] = "AUTO,STRICT"  # as tests/conftest.py has it
        self.folder = folder
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER.read_text()],
            cwd=folder,
            env=os.environ | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def pytest(self, tests: tuple[str, ...]) -> tuple[int, str]:
        """Exit code and output of these tests, stopping at the first failure."""
        self.server.stdin.write(" ".join(tests) + "\n")
        self.server.stdin.flush()
        code = int(self.server.stdout.readline())
        return code, (self.folder / "said").read_text()

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()


def verdict(mutant: Mutant, place: Place) -> str:
    """'killed', 'survived', 'gone' (its text is not there) or 'broken' (the tests did not run)."""
    path = place.folder / mutant.file
    whole = path.read_text()
    try:
        path.write_text(mutant.applied(whole))
    except ValueError:
        return "gone"
    try:
        code, _ = place.pytest(mutant.tests)
    finally:
        path.write_text(whole)
    return {0: "survived", 1: "killed"}.get(code, "broken")


def run(mutants: list[Mutant]) -> int:
    """Print a line a mutant and a summary; 1 unless every one is killed."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(WORKERS) as pool:
        places = [Place(copied(Path(folder) / str(k))) for k in range(WORKERS)]
        try:
            bad = _run(mutants, places, pool)
        finally:
            for place in places:
                place.close()
    if bad is None:
        return 1
    print(f"{len(mutants) - bad} of {len(mutants)} killed, {time.monotonic() - began:.0f} s")
    return int(bool(bad))


def _tell_all(places: list[Place]) -> None:
    """Each place learns which tests were quick in the others: those run first from now on."""
    files = [place.folder / SECONDS for place in places]
    known: dict[str, float] = {}
    for file in files:
        known |= json.loads(file.read_text()) if file.exists() else {}
    for file in files:
        file.write_text(json.dumps(known))


def _run(mutants: list[Mutant], places: list[Place], pool: ThreadPoolExecutor) -> int | None:
    """How many were not killed; None if the tests do not pass without a mutant."""
    free: Queue[Place] = Queue()
    for place in places:
        free.put(place)

    def lent(work, what):
        place = free.get()
        try:
            return what, work(what, place)
        finally:
            free.put(place)

    needed = sorted({mutant.tests for mutant in mutants})
    whole = pool.map(lambda tests: lent(lambda what, place: place.pytest(what), tests), needed)
    for tests, (code, said) in whole:
        if code:
            print(said[-3000:], f"without a mutant, {' '.join(tests)} does not pass", sep="\n")
            return None
    _tell_all(places)
    bad = 0
    for mutant, outcome in pool.map(lambda mutant: lent(verdict, mutant), mutants):
        bad += outcome != "killed"
        print(f"{outcome:9}{mutant.name}", flush=True)
    return bad
