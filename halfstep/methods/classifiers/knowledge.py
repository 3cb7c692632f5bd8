"""Knowledge distillation of classifiers: a teacher's answers, and labels where there are any."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn, Tensor

from halfstep.batch import Batch
from halfstep.config.validate import Updates, Validated
from halfstep.errors import ConfigError
from halfstep.methods.base import Objective, Stage
from halfstep.methods.classifiers.feature_terms import pairs_of
from halfstep.methods.classifiers.recipes import hinton, Terms
from halfstep.methods.classifiers.terms import distinct, Seen, Term
from halfstep.methods.classifiers.weight_schedules import never, weight_at
from halfstep.models.classifiers.ensemble import Teachers
from halfstep.models.hooks import check_parts, FeatureExtractor, projector, shapes, unchanged
from halfstep.rng import Draw

Answers = Callable[[Batch], Tensor]


@dataclass(frozen=True, kw_only=True)
class KnowledgeDistillation(Validated):
    """Teach a classifier what one larger, or several, would answer (Hinton et al. 2015)."""

    terms: Terms = field(default_factory=hinton)
    """What the student learns: see `halfstep.methods.classifiers.recipes`."""
    updates: Updates = 5_000
    """Optimiser updates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "terms", distinct(self.terms))
        if not self.live:
            raise ConfigError(
                "all weights of the objective are 0, so that nothing would be learnt: give a term a weight"
            )

    @property
    def live(self) -> Terms:
        """The terms that count at some time."""
        return tuple(term for term in self.terms if not never(term.weight))

    @property
    def label_smoothing(self) -> float:
        """The share of the labels that is spread over all classes, where a term learns from them."""
        return max((getattr(term, "smoothing", 0.0) for term in self.live), default=0.0)

    @property
    def asks_teacher(self) -> bool:
        """Whether any of them does."""
        return any(term.asks_teacher for term in self.live)

    def describe(self) -> dict[str, Any]:
        """As JSON: what a run is continued with."""
        named = {f"term {term.name}": term.describe() for term in self.live}
        return {**named, "terms": [term.name for term in self.live], "updates": self.updates}

    def notes(self) -> Iterator[str]:
        """What may be meant, and should be known."""
        for term in self.terms:
            if never(term.weight):
                yield f"the term '{term.name}' has the weight 0 and is left out"
        if not self.asks_teacher:
            yield (
                "no term with a weight asks the teacher: it is loaded, and the student learns from labels "
                "alone"
            )

    def stages(
        self,
        teacher: Teachers,
        student: nn.Module,
        *,
        example: Tensor | None = None,
        answers: Answers | None = None,
    ) -> Iterator[Stage]:
        """One stage.

        example  an image [1, ...], which terms on features need, to see how large those are
        answers  the teacher's, kept; None asks it
        """
        _refuse_itself(teacher, student)
        paired = pairs_of(self.live)
        if paired and answers is not None:
            raise ConfigError(
                "kept answers are logits alone, and a term compares features: keep no answers (command "
                "line: leave --cache out)"
            )
        learner = with_projectors(student, teacher, self.live, example) if paired else student
        objective = Distil(teacher, self.live, answers)
        yield Stage("student", learner, objective, self.updates)


@dataclass(frozen=True)
class Distil(Objective):
    """The weighted sum of terms, one value a row.

    A row without a label has no hard term, and all its others; all rows count alike, so the hard term is
    a mean over the whole batch, whichever rows of it have labels.

    teacher  whom to ask
    terms    each with its weight
    answers  the teacher's logits of a batch, kept; None asks it
    done     the share of the stage's updates that are done
    """

    teacher: Teachers
    terms: Terms
    answers: Answers | None = None
    done: float = 0.0

    @property
    def forwards(self) -> int:
        asked = self.answers is None and any(term.asks_teacher for term in self.terms)
        return 3 + asked * len(self.teacher.nets)

    def at(self, done: float) -> "Distil":
        """The same with the weights of that time."""
        return replace(self, done=done)

    def __call__(self, student: Any, batch: Batch, draw: Draw) -> Tensor:
        seen = self.see(student, batch)
        each = [weight_at(term.weight, self.done) * term(seen) for term in self.terms]
        return torch.stack(each).sum(0)

    def see(self, student: Any, batch: Batch) -> Seen:
        """What student and teacher say of the same images, which each reads once."""
        names = list(dict.fromkeys(theirs for _, _, _, theirs in pairs_of(self.terms)))
        with unchanged(batch.x0, "student"):
            found = student(batch.x0)
        logits, mine = found if isinstance(found, tuple) else (found, {})
        answer, theirs = None, dict[str, Tensor]()
        if any(term.asks_teacher for term in self.terms):
            if self.answers is not None:
                answer = self.answers(batch)
            else:
                answer, theirs = self.teacher.forward_with_features(batch.x0, names)
            _refuse_other_classes(logits, answer)
        labels = None if batch.cond is None else batch.cond.label
        return Seen(logits, answer, labels, mine, theirs)

    @torch.no_grad()
    def measure(self, student: Any, batch: Batch, draw: Draw) -> dict[str, Any]:
        """Each term by name, its weight at this time, and how often both choose the same class."""
        seen = self.see(student, batch)
        found: dict[str, Any] = {
            "terms": {term.name: _mean_of(term, seen) for term in self.terms},
            "weights": {term.name: weight_at(term.weight, self.done) for term in self.terms},
        }
        if seen.teacher is not None:
            same = seen.student.argmax(1) == seen.teacher.argmax(1)
            found["agreement"] = float(same.float().mean())
        return found


def with_projectors(
    student: nn.Module, teacher: Teachers, terms: Terms, example: Tensor | None
) -> FeatureExtractor:
    """The student with what these terms read of it, and a projector where one is needed."""
    if example is None:
        raise ConfigError(
            "a term compares features: give an example image, to see how large they are"
        )
    pairs = pairs_of(terms)
    mine, theirs = [own for _, _, own, _ in pairs], [other for _, _, _, other in pairs]
    check_parts(student, mine, "student")
    teacher.check_parts(theirs)
    wide, wanted = shapes(student, mine, example), teacher.forward_with_features(example, theirs)[1]
    projectors = dict[str, nn.Module]()
    for term, key, own, other in pairs:
        a, b = wide[own], tuple(wanted[other].shape)
        differ = _width(a) != _width(b)
        if term.projector == "always" or (term.projector == "auto" and differ):
            _refuse_other_places(own, other, a, b)
            projectors[key] = projector(a, b).to(example)
    return FeatureExtractor(student, {key: own for _, key, own, _ in pairs}, projectors)


def _width(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) == 4 else shape[-1]


def _refuse_other_places(mine: str, theirs: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    places = (a[2:], b[2:]) if len(a) == 4 else (a[1:-1], b[1:-1])
    if len(a) != len(b) or places[0] != places[1]:
        raise ConfigError(
            f"the student's '{mine}' puts out {list(a[1:])} and the teacher's '{theirs}' {list(b[1:])}: "
            "widths may differ, sides may not; name parts of equal sides"
        )


def _refuse_itself(teacher: Teachers, student: nn.Module) -> None:
    theirs = {id(value) for value in teacher.parameters()}
    if any(id(value) in theirs for value in student.parameters()):
        raise ConfigError(
            "the student shares weights with its teacher, which must not change: give a copy of it, or a "
            "network of its own"
        )


def _refuse_other_classes(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ConfigError(
            f"the student answers in the shape {list(student.shape)} and the teacher in "
            f"{list(teacher.shape)}: both must give logits [B, classes] of the same classes"
        )


def _mean_of(term: Term, seen: Seen) -> float:
    """Over the rows that it concerns."""
    values = term(seen)
    if not term.asks_teacher and seen.labels is not None:
        values = values[seen.labels >= 0]
    return float(values.mean()) if len(values) else 0.0
