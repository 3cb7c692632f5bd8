"""Terms of an objective on features: outputs of submodules of the student and of the teacher."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from halfstep.errors import ConfigError
from halfstep.methods import losses
from halfstep.methods.classifiers.terms import LossInputs, teacher_logits, Term

Pairs = tuple[tuple[str, str], ...]
Projector = Literal["never", "auto", "always"]


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list | tuple) and [type(name) for name in pair] == [str, str]


@dataclass(frozen=True, kw_only=True)
class Paired(Term):
    """A term that compares outputs of submodules of the student and of the teacher."""

    pairs: Pairs
    """(part of the student, part of the teacher), by their names as submodules."""
    projector: Projector = "never"
    """never, always, or auto: where the widths differ.  Trained with the student, and not exported."""

    def __post_init__(self) -> None:
        if not isinstance(self.pairs, list | tuple) or not all(map(_is_pair, self.pairs)):
            raise ConfigError(
                f"pairs name a part of the student and a part of the teacher, got {self.pairs!r}: write "
                'for example [["hidden", "hidden"]]'
            )
        super().__post_init__()
        if not self.pairs and not isinstance(self, Relational):
            raise ConfigError(
                f"the term '{self.name}' compares features and has no pairs: give it pairs of parts, such as "
                "pairs=(('hidden', 'hidden'),)"
            )

    def features(self, inputs: LossInputs) -> list[tuple[Tensor, Tensor]]:
        """The features (of the student, of the teacher) of each pair."""
        student, teacher = inputs.student_features or {}, inputs.teacher_features or {}
        named = zip(keys(self), self.pairs, strict=True)
        return [(student[key], teacher[name]) for key, (_, name) in named]

    def averaged(self, inputs: LossInputs, loss: Callable[..., Tensor], **options: Any) -> Tensor:
        """The mean over the pairs of a loss of `halfstep.methods.losses`, [B]."""
        each = [
            loss(student=student, teacher=teacher, reduction="none", **options)
            for student, teacher in self.features(inputs)
        ]
        return torch.stack(each).mean(0)


@dataclass(frozen=True, kw_only=True)
class FeatureMatch(Paired):
    """Squared error of features, projected to the teacher's width (Romero et al. 2015)."""

    projector: Projector = "auto"
    normalise: bool = True
    """Divide by the teacher's energy, so that layers of different scales count alike."""
    called: ClassVar[str] = "features"

    def __call__(self, inputs: LossInputs) -> Tensor:
        return self.averaged(inputs, losses.feature_match, normalise=self.normalise)


@dataclass(frozen=True, kw_only=True)
class AttentionTransfer(Paired):
    """Attention maps (Zagoruyko & Komodakis 2017) of parts with equal sides and any numbers of channels."""

    form: Literal["paper", "code"] = "code"
    called: ClassVar[str] = "attention"

    def __call__(self, inputs: LossInputs) -> Tensor:
        return self.averaged(inputs, losses.attention_transfer, form=self.form)


@dataclass(frozen=True, kw_only=True)
class Relational(Paired):
    """Distances between rows, or angles of three (Park et al. 2019), of features or, without pairs, logits.

    The rows are those of a micro-batch in one process.
    """

    pairs: Pairs = ()
    of: Literal["distance", "angle"] = "distance"
    called: ClassVar[str] = "relational"

    def __call__(self, inputs: LossInputs) -> Tensor:
        loss = losses.relational_distance if self.of == "distance" else losses.relational_angle
        return self.averaged(inputs, loss)

    def features(self, inputs: LossInputs) -> list[tuple[Tensor, Tensor]]:
        """The features of each pair; without pairs, the logits."""
        return (
            super().features(inputs) if self.pairs else [(inputs.student, teacher_logits(inputs))]
        )


def keys(term: Paired) -> list[str]:
    """A key for each pair of a term's features."""
    return [f"{term.name}-{k}" for k in range(len(term.pairs))]


def pairs_of(terms: Iterable[Term]) -> list[tuple[Paired, str, str, str]]:
    """(term, key, part of the student, part of the teacher) for every pair of all terms on features."""
    return [
        (term, key, *pair)
        for term in terms
        if isinstance(term, Paired)
        for key, pair in zip(keys(term), term.pairs, strict=True)
    ]
