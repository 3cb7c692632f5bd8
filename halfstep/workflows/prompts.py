"""Prompts of samples: typed, or lines of a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from pathlib import Path

import torch

from halfstep.batch import batches, Cond
from halfstep.config.validate import Validated
from halfstep.division import ALONE, Division
from halfstep.errors import ConfigError
from halfstep.files import read_text
from halfstep.pipeline import Pipeline
from halfstep.pipeline.conditioning import condition
from halfstep.progress import Progress

AT_ONCE = 64
"""Texts that are encoded at once."""


@dataclass(frozen=True, kw_only=True)
class PromptOptions(Validated):
    """The texts of samples, in turn, and those that guidance leads away from."""

    prompt: tuple[str, ...] = ()
    """Texts, in turn, for a model that reads texts; --per-class samples of each."""
    prompts: Path | None = None
    """A text file with a prompt a line, in place of --prompt; blank lines are left out."""
    negative_prompt: tuple[str, ...] = ()
    """Texts that guidance leads away from, in turn, in place of the empty one; needs --guidance-scale."""
    negative_prompts: Path | None = None
    """A text file with a negative prompt a line, for the prompts in turn."""

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The prompts; () without."""
        return read_prompts("prompt", self.prompt, self.prompts)

    @cached_property
    def negative(self) -> tuple[str, ...]:
        """The negative prompts; () without."""
        return read_prompts("negative-prompt", self.negative_prompt, self.negative_prompts)

    def refuse_labels(self, classes: Sequence[int]) -> None:
        """`ConfigError` for labels beside prompts."""
        if classes and self.texts:
            raise ConfigError("a model reads classes or texts: leave --labels or --prompt out")


def in_turn(texts: Sequence[str], numbers: Sequence[int]) -> list[str] | None:
    """The text of each of these numbers, in turn; None without texts."""
    return [texts[k % len(texts)] for k in numbers] if texts else None


def encoded(
    pipeline: Pipeline, texts: Sequence[str] | None, division: Division = ALONE
) -> Cond | None:
    """The conditions of these texts, a row each; a text that occurs twice is encoded once.

    division  divides them among processes, which share the text encoder
    """
    if not texts:
        return None
    distinct = list(dict.fromkeys(texts))
    some = (distinct[part.start : part.stop] for part in batches(range(len(distinct)), AT_ONCE))
    parts = list(division.map(partial(_conditions, pipeline), some))
    place = {text: k for k, text in enumerate(distinct)}
    rows = torch.tensor([place[text] for text in texts])
    named = {name: value[rows] for name, value in reduce(Cond.cat, parts).named().items()}
    return Cond(encoder_hidden_states=named.pop("encoder_hidden_states", None), added={
        name: value for name, value in named.items() if name in pipeline.added
    })  # fmt: skip


def _conditions(pipeline: Pipeline, texts: list[str], progress: Progress) -> Cond:
    return (condition(pipeline, len(texts), prompts=texts) or Cond()).to("cpu")


def read_prompts(option: str, typed: tuple[str, ...], path: Path | None) -> tuple[str, ...]:
    """The texts as typed, or the lines of the file."""
    if path is None:
        return typed
    if typed:
        raise ConfigError(f"--{option} and --{option}s say the same in two ways: give one of them")
    try:
        lines = read_text(path.expanduser()).split("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"'{path}' is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(
            f"cannot read the prompts '{path}' ({error.strerror}): give a text file with one a line"
        ) from None
    texts = tuple(filter(None, map(str.strip, lines)))
    if not texts:
        raise ConfigError(f"'{path}' has no prompt: write one a line")
    return texts
