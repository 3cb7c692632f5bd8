"""Images that are left out because they cannot be decoded, and the list of them beside what was made."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from halfstep import files
from halfstep.errors import printable

LIST = "skipped.txt"
NAMED = 5
"""The number of faulty images that a sentence names; it counts the others."""
Fault = tuple[str, str]
"""An image's name, and why it cannot be decoded."""


@dataclass(frozen=True)
class Skipped:
    """Images that were left out.

    images  the number of all images
    faults  those that were left out
    stamp   of all images, by which a later call knows that the list still holds
    """

    images: int = 0
    faults: tuple[Fault, ...] = ()
    stamp: str = ""

    def __str__(self) -> str:
        return (
            f"{len(self.faults):,} of {self.images:,} images cannot be read and are skipped: "
            f"{named(self.faults)}"
        )

    def write(self, folder: Path) -> None:
        """Write the list into a folder, a line for each image: its name, a tab, the reason.

        Nothing is written where nothing was skipped.
        """
        if not self.faults:
            return
        head = f"# {len(self.faults)} of {self.images} images were skipped; {self.stamp}\n"
        lines = "".join(f"{printable(name)}\t{printable(why)}\n" for name, why in self.faults)
        files.write_text(folder / LIST, head + lines)

    @classmethod
    def read(cls, folder: Path, images: int, stamp: str) -> "Skipped | None":
        """The list in a folder; None unless it is of as many images of this stamp."""
        try:
            head, *lines = files.read_text(folder / LIST).removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError):
            return None
        if head != f"# {len(lines)} of {images} images were skipped; {stamp}":
            return None
        faults = tuple((name, why) for name, _, why in (line.partition("\t") for line in lines))
        return cls(images, faults, stamp)


def named(faults: Sequence[Fault]) -> str:
    """The first faulty images with their reasons, and the number of the others."""
    return some([f"{name} ({why})" for name, why in faults])


def some(names: Sequence[str]) -> str:
    """The first of these names, and the number of the others."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
