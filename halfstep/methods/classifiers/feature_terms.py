"""Terms of an objective on features: what parts of the student and of the teacher put out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from halfstep.errors import ConfigError
from halfstep.methods import losses
from halfstep.methods.classifiers.terms import answers, Seen, Term

Pairs = tuple[tuple[str, str], ...]
Projector = Literal["never", "auto", "always"]


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list | tuple) and [type(name) for name in pair] == [str, str]


@dataclass(frozen=True, kw_only=True)
class Paired(Term):
    """A term on features: what parts of the student and of the teacher put out."""

    pairs: Pairs
    """(part of the student, part of the teacher), by their names as submodules."""
    projector: Projector = "never"
    """never, auto: where the widths differ, or always.  Trained with the student, and not exported."""

    def __post_init__(self) -> None:
        if not isinstance(self.pairs, list | tuple) or not all(map(_is_pair, self.pairs)):
            raise ConfigError(
                f"pairs are names of a part of the student and one of the teacher, got {self.pairs!r}: write "
                'for example [["hidden", "hidden"]]'
            )
        super().__post_init__()
        if not self.pairs and not isinstance(self, Relational):
            raise ConfigError(
                f"the term '{self.name}' compares features and names none: give it pairs of parts, such as "
                "pairs=(('hidden', 'hidden'),)"
            )

    def features(self, seen: Seen) -> list[tuple[Tensor, Tensor]]:
        """(the student's, the teacher's) of each pair."""
        mine, theirs = seen.mine or {}, seen.theirs or {}
        both = zip(keys(self), self.pairs, strict=True)
        return [(mine[key], theirs[name]) for key, (_, name) in both]

    def averaged(self, seen: Seen, loss: Callable[..., Tensor], **options: Any) -> Tensor:
        """The mean over the pairs of a loss of `halfstep.methods.losses`, [B]."""
        each = [
            loss(student=mine, teacher=theirs, reduction="none", **options)
            for mine, theirs in self.features(seen)
        ]
        return torch.stack(each).mean(0)


@dataclass(frozen=True, kw_only=True)
class FeatureMatch(Paired):
    """Squared error of features, the student's projected to the teacher's width (Romero et al. 2015)."""

    projector: Projector = "auto"
    normalise: bool = True
    """Over the teacher's energy, so that layers of another scale count alike."""
    called: ClassVar[str] = "features"

    def __call__(self, seen: Seen) -> Tensor:
        return self.averaged(seen, losses.feature_match, normalise=self.normalise)


@dataclass(frozen=True, kw_only=True)
class AttentionTransfer(Paired):
    """Maps of where features are large (Zagoruyko & Komodakis 2017), of parts with equal sides.

    The numbers of channels may differ.
    """

    form: Literal["paper", "code"] = "code"
    called: ClassVar[str] = "attention"

    def __call__(self, seen: Seen) -> Tensor:
        return self.averaged(seen, losses.attention_transfer, form=self.form)


@dataclass(frozen=True, kw_only=True)
class Relational(Paired):
    """Distances between rows, or angles of three (Park et al. 2019), of features or, without pairs, logits.

    Of the rows at hand: of a micro-batch, of one process.
    """

    pairs: Pairs = ()
    of: Literal["distance", "angle"] = "distance"
    called: ClassVar[str] = "relational"

    def __call__(self, seen: Seen) -> Tensor:
        loss = losses.relational_distance if self.of == "distance" else losses.relational_angle
        return self.averaged(seen, loss)

    def features(self, seen: Seen) -> list[tuple[Tensor, Tensor]]:
        """(the student's, the teacher's) of each pair; the logits without any."""
        return super().features(seen) if self.pairs else [(seen.student, answers(seen))]


def keys(term: Paired) -> list[str]:
    """One for each pair of a term's features."""
    return [f"{term.name}-{k}" for k in range(len(term.pairs))]


def pairs_of(terms: Iterable[Term]) -> list[tuple[Paired, str, str, str]]:
    """(term, key, part of the student, part of the teacher) of all terms on features."""
    return [
        (term, key, *pair)
        for term in terms
        if isinstance(term, Paired)
        for key, pair in zip(keys(term), term.pairs, strict=True)
    ]
