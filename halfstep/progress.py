"""Progress of long work: how many steps are to come, how many are done, what should be known.

Whatever takes long has an argument `progress`, silent by default.  It says how many steps are to come before
the first of them, from the list that it then works through, and says each step once it is done.
"""

from dataclasses import dataclass
from typing import Protocol


class Progress(Protocol):
    """Shows how far a long piece of work is; any object with these three methods.

    A step is a sampler step of a batch, an image that is read or encoded, a timing: what the work consists
    of.  docs/how-to/evaluate-and-report.md shows the progress with tqdm, in ten lines.
    """

    def expect(self, steps: int) -> None:
        """So many more steps are to come: the total may grow."""

    def advance(self, steps: int = 1) -> None:
        """So many steps are done."""

    def note(self, text: str) -> None:
        """A sentence that the user should know."""


class _Silent:
    """Shows nothing."""

    def expect(self, steps: int) -> None: ...
    def advance(self, steps: int = 1) -> None: ...
    def note(self, text: str) -> None: ...


SILENT: Progress = _Silent()


@dataclass(frozen=True)
class _Part:
    """Progress of a part of work that was expected as a whole."""

    whole: Progress

    def expect(self, steps: int) -> None:
        """The whole has expected them."""

    def advance(self, steps: int = 1) -> None:
        self.whole.advance(steps)

    def note(self, text: str) -> None:
        self.whole.note(text)


def expected(progress: Progress, steps: int) -> Progress:
    """Expect all steps of a piece of work; returns the progress to hand to its parts.

    A part expects its own steps, too: these count once, in the whole.
    """
    progress.expect(steps)
    return _Part(progress)
