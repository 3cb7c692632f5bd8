"""Knowledge distillation of classifiers from a teacher's logits, and from labels where the data have them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn, Tensor

from halfstep.batch import Batch
from halfstep.config import JsonObject
from halfstep.config.validate import Updates, Validated
from halfstep.errors import ConfigError
from halfstep.methods.classifiers.feature_terms import pairs_of
from halfstep.methods.classifiers.recipes import hinton, Terms
from halfstep.methods.classifiers.terms import distinct, LossInputs, Term
from halfstep.methods.classifiers.weight_schedules import is_zero, weight_at
from halfstep.methods.stages import Objective, Stage
from halfstep.models.classifiers.ensemble import Teachers
from halfstep.models.hooks import check_parts, FeatureExtractor, projector, shapes, unchanged
from halfstep.rng import Draw

Answers = Callable[[Batch], Tensor]
"""A teacher's logits of a batch."""


@dataclass(frozen=True, kw_only=True)
class KnowledgeDistillation(Validated):
    """Train a classifier to predict what a larger one, or several, predict (Hinton et al. 2015).

    Raises:
        ConfigError: all weights of the objective are 0.
        DataError: a term needs labels and the data has none, once it is trained.
    """

    terms: Terms = field(default_factory=hinton)
    """The terms of the loss: see `halfstep.methods.classifiers.recipes`."""
    updates: Updates = 5_000
    """Optimiser updates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "terms", distinct(self.terms))
        if not self.live:
            raise ConfigError(
                "all weights of the objective are 0, so the student would learn nothing: give a term a weight"
            )

    @property
    def live(self) -> Terms:
        """The terms with a weight above 0 at some time."""
        return tuple(term for term in self.terms if not is_zero(term.weight))

    @property
    def label_smoothing(self) -> float:
        """The largest share of a target spread over all classes, among the terms on labels."""
        return max((getattr(term, "smoothing", 0.0) for term in self.live), default=0.0)

    @property
    def uses_teacher(self) -> bool:
        """Whether any term uses the teacher."""
        return any(term.uses_teacher for term in self.live)

    def describe(self) -> JsonObject:
        """The method as JSON, for resuming a run."""
        named = {f"term {term.name}": term.describe() for term in self.live}
        return {**named, "terms": [term.name for term in self.live], "updates": self.updates}

    def notes(self) -> Iterator[str]:
        """Warnings that do not stop the run."""
        for term in self.terms:
            if is_zero(term.weight):
                yield f"the term '{term.name}' has the weight 0 and is left out"
        if not self.uses_teacher:
            yield (
                "no term with a weight uses the teacher: it is loaded, and the student learns from labels "
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

        Args:
            teacher: one classifier or several.
            student: maps images [B, C, H, W] to logits [B, classes].
            example: an image [1, C, H, W], from which terms on features take their shapes.
            answers: cached logits of the teacher, float [B, classes] of a batch; None computes them.

        Raises:
            ConfigError: student and teacher differ in classes or share weights, or terms compare features
                that have other places.
        """
        _refuse_itself(teacher, student)
        paired = pairs_of(self.live)
        if paired and answers is not None:
            raise ConfigError(
                "cached answers are logits only, and a term compares features: leave the cache out (command "
                "line: leave --cache out)"
            )
        learner = with_projectors(student, teacher, self.live, example) if paired else student
        objective = Distil(teacher, self.live, answers)
        yield Stage("student", learner, objective, self.updates)


@dataclass(frozen=True)
class Distil(Objective):
    """The weighted sum of terms, one value per row.

    A row without a label loses its hard term and keeps the others.  All rows count alike, so the hard term is
    a mean over the whole batch, with and without labels.

    answers  cached logits of the teacher; None computes them
    done     the share of the stage's updates that are done
    """

    teacher: Teachers
    terms: Terms
    answers: Answers | None = None
    done: float = 0.0

    @property
    def forwards(self) -> int:
        uses_teacher = self.answers is None and any(term.uses_teacher for term in self.terms)
        return 3 + uses_teacher * len(self.teacher.nets)

    def at(self, done: float) -> "Distil":
        """The objective with the weights at this share of updates."""
        return replace(self, done=done)

    def __call__(self, student: Any, batch: Batch, draw: Draw) -> Tensor:
        inputs = self.loss_inputs(student, batch)
        each = [weight_at(term.weight, self.done) * term(inputs) for term in self.terms]
        return torch.stack(each).sum(0)

    def loss_inputs(self, student: Any, batch: Batch) -> LossInputs:
        """The outputs of student and teacher for the same images, with one forward of each."""
        names = list(
            dict.fromkeys(teacher_features for _, _, _, teacher_features in pairs_of(self.terms))
        )
        with unchanged(batch.x0, "student"):
            output = student(batch.x0)
        logits, student_features = output if isinstance(output, tuple) else (output, {})
        teacher_logits, teacher_features = None, dict[str, Tensor]()
        if any(term.uses_teacher for term in self.terms):
            if self.answers is not None:
                teacher_logits = self.answers(batch)
            else:
                teacher_logits, teacher_features = self.teacher.forward_with_features(
                    batch.x0, names
                )
            _refuse_other_classes(logits, teacher_logits)
        labels = None if batch.cond is None else batch.cond.label
        return LossInputs(logits, teacher_logits, labels, student_features, teacher_features)

    @torch.no_grad()
    def measure(self, student: Any, batch: Batch, draw: Draw) -> JsonObject:
        """Each term by name, its present weight, and how often both choose the same class."""
        inputs = self.loss_inputs(student, batch)
        numbers: JsonObject = {
            "terms": {term.name: _mean_of(term, inputs) for term in self.terms},
            "weights": {term.name: weight_at(term.weight, self.done) for term in self.terms},
        }
        if inputs.teacher is not None:
            same = inputs.student.argmax(1) == inputs.teacher.argmax(1)
            numbers["agreement"] = float(same.float().mean())
        return numbers


def with_projectors(
    student: nn.Module, teacher: Teachers, terms: Terms, example: Tensor | None
) -> FeatureExtractor:
    """The student with the features that the terms read, and projectors where they are needed."""
    if example is None:
        raise ConfigError(
            "a term compares features: give an example image, to see how large they are"
        )
    pairs = pairs_of(terms)
    parts, teacher_parts = {key: part for _, key, part, _ in pairs}, [part for *_, part in pairs]
    check_parts(student, list(parts.values()), "student")
    teacher.check_parts(teacher_parts)
    student_shapes = shapes(student, list(parts.values()), example)
    teacher_features = teacher.forward_with_features(example, teacher_parts)[1]
    projectors = dict[str, nn.Module]()
    for term, key, part, teacher_part in pairs:
        a, b = student_shapes[part], tuple(teacher_features[teacher_part].shape)
        differ = _width(a) != _width(b)
        if term.projector == "always" or (term.projector == "auto" and differ):
            _refuse_other_places(part, teacher_part, a, b)
            projectors[key] = projector(a, b).to(example)
    return FeatureExtractor(student, parts, projectors)


def _width(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) == 4 else shape[-1]


def _refuse_other_places(
    part: str, teacher_part: str, a: tuple[int, ...], b: tuple[int, ...]
) -> None:
    places = (a[2:], b[2:]) if len(a) == 4 else (a[1:-1], b[1:-1])
    if len(a) != len(b) or places[0] != places[1]:
        raise ConfigError(
            f"the student's '{part}' has the shape {list(a[1:])} and the teacher's '{teacher_part}' "
            f"{list(b[1:])}: widths may differ, sides may not; name parts of equal sides"
        )


def _refuse_itself(teacher: Teachers, student: nn.Module) -> None:
    teacher_ids = {id(value) for value in teacher.parameters()}
    if any(id(value) in teacher_ids for value in student.parameters()):
        raise ConfigError(
            "the student shares weights with its teacher, which must not change: give a copy of it, or a "
            "network of its own"
        )


def _refuse_other_classes(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ConfigError(
            f"the student's logits are {list(student.shape)} and the teacher's {list(teacher.shape)}: both "
            "must be [B, classes] of the same classes"
        )


def _mean_of(term: Term, inputs: LossInputs) -> float:
    """The mean of a term, over labelled rows if it needs labels."""
    values = term(inputs)
    if not term.uses_teacher and inputs.labels is not None:
        values = values[inputs.labels >= 0]
    return float(values.mean()) if len(values) else 0.0
