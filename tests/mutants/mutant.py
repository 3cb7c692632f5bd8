"""One token of a formula, changed: some test must fail."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutant:
    """`old`, which occurs once in `file`, becomes `new`; one of the tests must fail."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """file:old, on one line."""
        return f"{self.file}: {' '.join(self.old.split())}  ->  {' '.join(self.new.split())}"

    def applied(self, source: str) -> str:
        """The mutated source; ValueError unless `old` occurs exactly once."""
        if (count := source.count(self.old)) != 1:
            raise ValueError(f"{self.file} has {count} times, and not once: {self.old}")
        return source.replace(self.old, self.new)


def of(file: str, tests: str, *changes: tuple[str, str]) -> tuple[Mutant, ...]:
    """Changes (old, new) of halfstep/FILE.py, each for all of these tests/test_NAME.py.

    file  without .py; a template's has its suffix, as in report/page.html.j2
    """
    path = f"halfstep/{file}{'' if file.endswith('.j2') else '.py'}"
    files = tuple(_file(name) for name in tests.split())
    return tuple(Mutant(path, old, new, files) for old, new in changes)


def _file(name: str) -> str:
    """tests/FOLDER/test_NAME.py of FOLDER/NAME."""
    folder, _, last = name.rpartition("/")
    return "/".join(filter(None, ("tests", folder, f"test_{last}.py")))
