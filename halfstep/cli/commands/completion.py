"""`halfstep completion SHELL`: print a completion script.

Nothing heavy is imported, since shells run it as they start.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from halfstep.cli import COMPLETION
from halfstep.cli.parse import parse
from halfstep.config.fields import POSITIONAL
from halfstep.config.validate import Validated


@dataclass(frozen=True, kw_only=True)
class CompletionOptions(Validated):
    """Print a script with which a shell completes halfstep's verbs, options and values."""

    shell: Annotated[Literal["bash", "zsh", "tcsh"], POSITIONAL]
    """bash (in ~/.bashrc: eval "$(halfstep completion bash)"), zsh or tcsh."""


def main(argv: Sequence[str]) -> int:
    """Print the script."""
    options = parse(CompletionOptions, argv, prog="halfstep completion")
    path = COMPLETION / f"halfstep.{options.shell}"
    sys.stdout.write(path.read_text(encoding="utf-8"))
    return 0
