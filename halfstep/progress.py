"""Progress of long work: the expected number of steps, the steps done, and notes to the user.

Every long function has an argument `progress`, silent by default.  It expects its steps before the first
one, counted from the list that it works through, and advances after each.
"""

from dataclasses import dataclass
from typing import Protocol


class Progress(Protocol):
    """Shows the progress of a long piece of work; any object with these three methods.

    A step is a unit of the work: a sampler step of a batch, an image read or encoded, a timing.
    docs/how-to/evaluate-and-report.md shows the progress with tqdm, in ten lines.
    """

    def expect(self, steps: int) -> None:
        """Add steps to the total.

        Args:
            steps: 0 or more.
        """

    def advance(self, steps: int = 1) -> None:
        """Add steps to those done.

        Args:
            steps: 0 or more.
        """

    def note(self, text: str) -> None:
        """Show the user a sentence.

        Args:
            text: the sentence.
        """


class _Silent:
    """Shows nothing."""

    def expect(self, steps: int) -> None: ...
    def advance(self, steps: int = 1) -> None: ...
    def note(self, text: str) -> None: ...


SILENT: Progress = _Silent()


@dataclass(frozen=True)
class _Part:
    """Progress of a part, whose steps the whole has expected."""

    whole: Progress

    def expect(self, steps: int) -> None:
        """Nothing: the whole has expected them."""

    def advance(self, steps: int = 1) -> None:
        self.whole.advance(steps)

    def note(self, text: str) -> None:
        self.whole.note(text)


def expected(progress: Progress, steps: int) -> Progress:
    """Expect all steps of a piece of work; returns the progress to hand to its parts.

    A part expects its own steps too, which are then counted only once.
    """
    progress.expect(steps)
    return _Part(progress)
