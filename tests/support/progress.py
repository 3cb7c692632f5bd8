"""A progress that remembers what it was told."""

from halfstep.progress import SILENT


class Ledger:
    """How many steps were expected, and done.

    shown  another that is told the same
    each   the steps of each advance
    """

    def __init__(self, shown=SILENT):
        self.shown = shown
        self.total, self.each, self.notes, self.grown = 0, [], [], False

    def expect(self, steps):
        assert steps >= 0
        self.grown = self.grown or bool(steps and 0 < self.done < self.total)
        self.total += steps
        self.shown.expect(steps)

    def advance(self, steps=1):
        self.each.append(steps)
        assert steps >= 0 and self.done <= self.total
        self.shown.advance(steps)

    def note(self, text):
        self.notes.append(text)
        self.shown.note(text)

    @property
    def done(self):
        return sum(self.each)

    @property
    def steps(self):
        """All steps: those of a phase were expected before its first, and done."""
        assert self.total == self.done and not self.grown, vars(self)
        return self.done
