"""Losses at their edges: extreme logits, half precision, one sample, one class, and what is refused."""

import inspect
import math

import pytest
import torch

from halfstep.errors import ConfigError, DataError
from halfstep.methods import losses

B, C = 5, 3
Y = torch.tensor([2, 0, 1, 1, 0])
SOFT = {"temperature": 2.0}
MIXED = {**SOFT, "soft_weight": 0.9, "hard_weight": 0.1}
GIVEN = {
    "attention_transfer": {"form": "paper"},
    "decoupled": {"labels": Y},
    "dist": {},
    "feature_match": {},
    "hard_distillation": {},
    "hard_labels": {"labels": Y},
    "hinton_mixture": {"labels": Y, **MIXED},
    "jensen_shannon": {},
    "logit_half_sum": {},
    "logit_match": {},
    "relational_angle": {},
    "relational_distance": {},
    "report_mixture": {"labels": Y, **MIXED},
    "soft_cross_entropy": SOFT,
    "soft_targets": SOFT,
    "tang": {"labels": Y, "hard_share": 0.5},
}
OF_LOGITS = sorted(GIVEN.keys() - {"attention_transfer", "feature_match"})
OF_PAIRS = [name for name in OF_LOGITS if name != "hard_labels"]
OF_THE_BATCH = {"dist", "relational_angle", "relational_distance"}


def test_every_loss_is_here_and_names_its_arguments():
    functions = {
        name
        for name in losses.__all__
        if inspect.isfunction(getattr(losses, name)) and name not in ("centred", "standardised")
    }
    assert functions == set(GIVEN)
    for name in GIVEN:
        parameters = inspect.signature(getattr(losses, name)).parameters
        assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values()), name
        assert parameters["reduction"].default == "batchmean"


def made(rows=B, num_classes=C, dtype=torch.float64, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(rows, num_classes, generator=generator)).to(dtype)


def value(name, student, teacher, **more):
    arguments = {**GIVEN[name], **more}
    if "labels" in arguments:
        arguments["labels"] = arguments["labels"][: len(student)].clamp(max=student.shape[1] - 1)
    if name != "hard_labels":
        arguments["teacher"] = teacher
    return getattr(losses, name)(student=student, **arguments)


def finite(name, student, teacher, **more):
    """The loss and its gradient, both finite."""
    student = student.clone().requires_grad_()
    loss = value(name, student, teacher, **more)
    loss.sum().backward()
    assert loss.isfinite().all() and student.grad.isfinite().all()
    return loss.detach(), student.grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", OF_LOGITS)
def test_extreme_logits(name, dtype):
    """+-2000, alike, opposite and one-sided; the plain forms give inf or nan."""
    high = torch.full((B, C), -2000.0, dtype=dtype)
    high[torch.arange(B), Y] = 2000
    far = high.clone()
    far[0] = 0
    calm = made(dtype=dtype)
    for student in (high, far, -high, torch.full_like(high, 2000), calm):
        for teacher in (high, -high, calm):
            arguments = {} if name not in ("decoupled", "dist") else {"temperature": 1.0}
            loss, grad = finite(name, student, teacher, **arguments)
            assert loss >= (-1e-6 if name == "dist" else 0)  # a correlation of 1 + rounding
            assert loss.dtype == (dtype if dtype == torch.float64 else torch.float32)
            assert grad.dtype == dtype


def test_extreme_logits_cost_what_they_are_worth():
    far = torch.tensor([[2000.0, -2000.0, -2000.0]])
    wrong = torch.tensor([[-2000.0, 2000.0, -2000.0]])
    assert value("soft_targets", wrong, far, temperature=1.0) == 4000
    assert value("soft_cross_entropy", wrong, far, temperature=1.0) == 4000
    labels = torch.tensor([0])
    assert value("hard_labels", wrong, far, labels=labels) == 4000
    only = {"temperature": 1.0, "others_weight": 0.0, "labels": labels}
    assert value("decoupled", wrong, far, **only) == 4000


@pytest.mark.parametrize("name", ["soft_targets", "soft_cross_entropy"])
def test_a_teacher_may_exclude_a_class(name):
    teacher = made()
    teacher[:, 1] = -torch.inf
    teacher[0, 0] = -torch.inf
    loss, grad = finite(name, made(seed=1), teacher)
    torch.testing.assert_close(loss, value(name, made(seed=1), teacher.clamp(min=-1e4)))
    assert (grad[:, 1] > 0).all()


@pytest.mark.parametrize("name", GIVEN)
def test_float32_inside_for_half_inputs_and_under_autocast(name):
    student, teacher = made(dtype=torch.bfloat16), made(dtype=torch.bfloat16, seed=1)
    if name == "attention_transfer":
        student, teacher = student[..., None], teacher[..., None]
    whole = value(name, student.float(), teacher.float())
    assert torch.equal(value(name, student, teacher), whole)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(value(name, student, teacher), whole)
        assert torch.equal(value(name, student.float(), teacher.float()), whole)
    assert whole.dtype == torch.float32
    assert value(name, student.double(), teacher.double()).dtype == torch.float64
    assert value(name, student, teacher.float()).dtype == torch.float32


@pytest.mark.parametrize("name", OF_PAIRS)
def test_the_teacher_gets_no_gradient(name):
    teacher = made(seed=1).requires_grad_()
    student = made().requires_grad_()
    value(name, student, teacher).backward()
    assert teacher.grad is None and student.grad is not None


@pytest.mark.parametrize("name", OF_LOGITS)
def test_none_gives_one_value_a_sample_and_batchmean_their_mean(name):
    student, teacher = made(), made(seed=1)
    each = value(name, student, teacher, reduction="none")
    assert each.shape == (B,)
    torch.testing.assert_close(each.mean(), value(name, student, teacher))
    order = torch.tensor([3, 1, 4, 0, 2])
    arguments = {"labels": Y[order]} if "labels" in GIVEN[name] else {}
    moved = value(name, student[order], teacher[order], reduction="none", **arguments)
    torch.testing.assert_close(moved, each[order])
    if name not in OF_THE_BATCH:
        alone = value(name, student[:1], teacher[:1], reduction="none")
        torch.testing.assert_close(alone, each[:1])


@pytest.mark.parametrize("name", OF_LOGITS)
@pytest.mark.parametrize("rows, num_classes", [(1, 4), (2, 4), (4, 4), (5, 1), (5, 2)])
def test_few_rows_few_classes(name, rows, num_classes):
    """Also as many rows as classes, where a transposed sum goes unnoticed."""
    if (name, num_classes) == ("decoupled", 1) or (name, rows) == ("dist", 1):
        pytest.skip("refused: see below")
    student, teacher = made(rows, num_classes), made(rows, num_classes, seed=1)
    loss, _ = finite(name, student, teacher)
    if num_classes == 1 and name in ("soft_targets", "soft_cross_entropy", "hard_labels"):
        assert loss == 0
    if rows == 1 and name in OF_THE_BATCH:
        assert loss == 0


def test_rows_without_a_label_lose_the_hard_term_alone():
    some = torch.tensor([2, -1, 1, -1, -1])
    student, teacher = made(), made(seed=1)
    labelled = some >= 0
    hard = value("hard_labels", student, teacher, labels=some)
    assert hard == value("hard_labels", student[labelled], teacher, labels=some[labelled])
    each, grad = finite("hard_labels", student, teacher, labels=some, reduction="none")
    assert (each[~labelled] == 0).all() and (grad[~labelled] == 0).all() and each[0] > 0
    soft = value("soft_targets", student, teacher)
    arguments = {"labels": some, "soft_weight": 3.0, "hard_weight": 2.0}
    mixed = value("hinton_mixture", student, teacher, **arguments)
    torch.testing.assert_close(mixed, 3 * soft + 2 * hard)


def test_without_any_label_there_is_no_hard_term():
    nothing = torch.full((B,), -1)
    for smoothing in (0.0, 0.1):
        loss, grad = finite("hard_labels", made(), made(), labels=nothing, smoothing=smoothing)
        assert loss == 0 and (grad == 0).all()
    student, teacher = made(), made(seed=1)
    mixed = value("report_mixture", student, teacher, labels=nothing)
    torch.testing.assert_close(mixed, 0.9 * value("soft_cross_entropy", student, teacher))


def test_what_does_not_vary_correlates_by_nothing():
    """A student of zeros, as from a head of zeros: no division by what rounding leaves."""
    for dtype in (torch.float32, torch.float64):
        flat, teacher = torch.zeros(B, 11, dtype=dtype), made(B, 11, dtype=dtype)
        loss, grad = finite("dist", flat, teacher)
        assert loss == 2 and (grad == 0).all()
        loss, _ = finite("dist", teacher, flat)
        assert loss == 2


def test_samples_that_are_one_give_no_explosion():
    same, teacher = torch.ones(B, C), made(dtype=torch.float32)
    for name in ("relational_distance", "relational_angle"):
        _, grad = finite(name, same, teacher)
        assert grad.abs().max() < 10
    near = same.clone()
    near[0] += 1
    _, grad = finite("relational_angle", near, teacher)
    assert grad.abs().max() < 10


def test_embeddings_may_differ_in_width():
    student, teacher = made(4, 6), made(4, 3, seed=1)
    wide = torch.cat([teacher, torch.zeros(4, 3)], dim=1)
    for name in ("relational_distance", "relational_angle"):
        torch.testing.assert_close(value(name, student, teacher), value(name, student, wide))
        maps = value(name, student.reshape(4, 2, 3), teacher)
        assert maps == value(name, student, teacher)


REFUSED = [
    (
        {"name": "soft_targets", "temperature": 0.0},
        "temperature is 0.0: give a finite number above",
    ),
    ({"name": "soft_targets", "temperature": -1.0}, "temperature is -1.0"),
    ({"name": "dist", "temperature": float("nan")}, "temperature is nan"),
    ({"name": "decoupled", "temperature": float("inf")}, "temperature is inf"),
    ({"name": "soft_targets", "reduction": "mean"}, "write 'batchmean', the mean over the batch"),
    ({"name": "feature_match", "reduction": "sum"}, "reduction is 'sum'"),
    ({"name": "hard_labels", "reduction": "batch"}, "one value per sample"),
    ({"name": "hinton_mixture", "soft_weight": -0.1}, "soft_weight is -0.1: give a finite number"),
    ({"name": "hinton_mixture", "hard_weight": float("nan")}, "hard_weight is nan"),
    ({"name": "report_mixture", "soft_weight": float("inf")}, "soft_weight is inf"),
    ({"name": "report_mixture", "soft_weight": 0.0, "hard_weight": 0.0}, "are both 0"),
    ({"name": "decoupled", "target_weight": -1.0}, "target_weight is -1.0"),
    ({"name": "decoupled", "others_weight": float("nan")}, "others_weight is nan"),
    ({"name": "dist", "inter_weight": -1.0}, "inter_weight is -1.0"),
    ({"name": "dist", "intra_weight": -1.0}, "intra_weight is -1.0"),
    ({"name": "dist", "form": "codes"}, "perhaps you meant 'code'"),
    ({"name": "tang", "hard_share": 1.5}, "hard_share is 1.5: give a number from 0 to 1"),
    ({"name": "jensen_shannon", "teacher_share": 0.0}, "teacher_share is 0.0"),
    ({"name": "jensen_shannon", "teacher_share": float("nan")}, "teacher_share is nan"),
    (
        {"name": "hard_labels", "smoothing": 1.0},
        "smoothing is 1.0: give a number from 0 to below 1",
    ),
    ({"name": "hard_labels", "labels": torch.tensor([0, 1, 2, 3, 0])}, "labels run from 0 to 3"),
    ({"name": "hard_labels", "labels": torch.tensor([0, -2, 2, 0, 0])}, "labels run from -2 to 2"),
    ({"name": "hard_labels", "labels": Y.float()}, "these are float32 [5] for 5 rows"),
    ({"name": "hard_labels", "labels": Y[:4]}, "these are int64 [4] for 5 rows"),
    ({"name": "decoupled", "labels": torch.tensor([0, -1, 2, 0, 0])}, "some rows have none"),
]


@pytest.mark.parametrize("case, says", REFUSED)
def test_refused(case, says):
    case = dict(case)
    name = case.pop("name")
    arguments = {**GIVEN[name], **case}
    if name != "hard_labels":
        arguments["teacher"] = made(seed=1)
    with pytest.raises((ConfigError, DataError)) as refusal:
        getattr(losses, name)(student=made(), **arguments)
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", OF_PAIRS)
def test_shapes_that_do_not_match_are_refused(name):
    with pytest.raises(
        ConfigError, match=r"the student's .* are \[5, 3\] and the teacher's \[4, 3\]"
    ):
        value(name, made(), made(4))
    if name not in ("relational_distance", "relational_angle"):
        with pytest.raises(ConfigError, match="same classes"):
            value(name, made(), made(num_classes=1))
        with pytest.raises(ConfigError, match=r"these are \[5, 3, 1\]"):
            value(name, made()[..., None], made()[..., None])
        with pytest.raises(ConfigError, match="at least one row"):
            value(name, made(0), made(0))
    with pytest.raises(ConfigError, match="are int64"):
        value(name, made(), made().long())


def test_too_few_of_them_are_refused():
    with pytest.raises(ConfigError, match="one sample"):
        value("dist", made(1), made(1))
    assert value("dist", made(1), made(1, seed=1), intra_weight=0.0) > 0
    with pytest.raises(ConfigError, match="two classes"):
        value("decoupled", made(num_classes=1), made(num_classes=1))
    with pytest.raises(ConfigError, match="no deviation"):
        losses.standardised(made(num_classes=1))


def test_standardising_what_is_constant_or_half():
    flat = torch.zeros(2, C).requires_grad_()
    losses.standardised(flat).square().sum().backward()
    assert flat.grad.isfinite().all()
    assert losses.standardised(made(dtype=torch.float16)).dtype == torch.float32
    assert losses.centred(made(dtype=torch.float16)).dtype == torch.float32
    extreme = losses.standardised(2000 * torch.eye(C))
    assert extreme.isfinite().all()


EXCLUDING = {
    "soft_targets": lambda s, t: losses.soft_targets(student=s, teacher=t, temperature=2.0),
    "cross-entropy": lambda s, t: losses.soft_cross_entropy(student=s, teacher=t, temperature=2.0),
    "jensen_shannon": lambda s, t: losses.jensen_shannon(student=s, teacher=t, teacher_share=0.3),
    "logit_match": lambda s, t: losses.logit_match(student=s, teacher=t),
    "logit_half_sum": lambda s, t: losses.logit_half_sum(student=s, teacher=t),
    "centred": lambda s, t: losses.logit_match(
        student=losses.centred(s), teacher=losses.centred(t)
    ),
    "standardised": lambda s, t: losses.soft_targets(
        student=losses.standardised(s), teacher=losses.standardised(t), temperature=2.0
    ),
    "decoupled": lambda s, t: losses.decoupled(
        student=s, teacher=t, labels=torch.arange(len(s)) % 4
    ),
    "dist, paper": lambda s, t: losses.dist(student=s, teacher=t, form="paper"),
    "dist, code": lambda s, t: losses.dist(student=s, teacher=t, form="code", temperature=2.0),
    "distance": lambda s, t: losses.relational_distance(student=s, teacher=t),
    "angle": lambda s, t: losses.relational_angle(student=s, teacher=t),
    "hard_distillation": lambda s, t: losses.hard_distillation(student=s, teacher=t),
    "tang": lambda s, t: losses.tang(
        student=s, teacher=t, labels=torch.arange(len(s)) % 4, hard_share=0.3
    ),
}
INFINITE = ("logit_match", "logit_half_sum", "centred", "tang")


def with_gradient(loss, student, teacher):
    student = student.clone().requires_grad_()
    value = loss(student, teacher)
    return value.detach(), torch.autograd.grad(value, student)[0]


@pytest.mark.parametrize("name", EXCLUDING)
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_class_that_both_exclude_counts_nothing(name, place):
    """Value and gradient are those without it; of one that the teacher alone excludes they are no nan."""
    loss = EXCLUDING[name]
    s, t = (torch.randn(6, 4, generator=torch.Generator().manual_seed(k)) for k in (1, 2))

    def wide(x, filled):
        return torch.cat([x[:, :place], torch.full((6, 1), filled), x[:, place:]], 1)

    if name in ("decoupled", "tang") and place < 4:
        return  # labels would name other classes
    value, gradient = with_gradient(loss, s, t)
    masked, slope = with_gradient(loss, wide(s, -math.inf), wide(t, -math.inf))
    others = [k for k in range(5) if k != place]
    torch.testing.assert_close(masked, value, rtol=0, atol=1e-6)
    torch.testing.assert_close(slope[:, others], gradient, rtol=0, atol=1e-6)
    assert (slope[:, place] == 0).all()
    if name in ("distance", "angle"):
        with pytest.raises(ConfigError, match="-inf"):
            loss(wide(s, 0.3), wide(t, -math.inf))
        return
    masked, slope = with_gradient(loss, wide(s, 0.3), wide(t, -math.inf))
    assert masked == math.inf if name in INFINITE else masked.isfinite() and slope.isfinite().all()
    assert not loss(wide(s, -math.inf), wide(t, 0.3)).isnan()


def test_a_student_that_excludes_what_its_teacher_sees_is_infinitely_wrong():
    s, t = torch.tensor([[1.0, -math.inf, 0.5]]), torch.tensor([[0.3, 0.2, 0.1]])
    for name in ("soft_targets", "cross-entropy", "logit_match", "tang", "decoupled"):
        assert EXCLUDING[name](s, t) == math.inf, name
    assert EXCLUDING["jensen_shannon"](s, t) <= math.log(2)
    # A teacher whose probability is 0 in float32 sees nothing there either.
    t[0, 1] = torch.finfo(torch.float32).min
    want = EXCLUDING["soft_targets"](s[:, [0, 2]], t[:, [0, 2]])
    torch.testing.assert_close(EXCLUDING["soft_targets"](s, t), want)


def test_classes_excluded_in_some_rows_count_in_the_others():
    s, t = (torch.randn(6, 4, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    excluded = torch.zeros(6, 4, dtype=torch.bool)
    excluded[2, 3] = excluded[4, 0] = True
    rows = [torch.arange(4)[~excluded[k]] for k in range(6)]
    for name in ("soft_targets", "jensen_shannon", "logit_match", "standardised"):
        loss = EXCLUDING[name]
        each = [
            loss(s[k : k + 1, columns], t[k : k + 1, columns]) for k, columns in enumerate(rows)
        ]
        masked = loss(s.masked_fill(excluded, -math.inf), t.masked_fill(excluded, -math.inf))
        torch.testing.assert_close(masked, torch.stack(each).mean(), rtol=0, atol=1e-6)
    for name in ("dist, paper", "dist, code", "distance", "angle"):
        masked, slope = with_gradient(
            EXCLUDING[name], s.masked_fill(excluded, -math.inf), t.masked_fill(excluded, -math.inf)
        )
        assert masked.isfinite() and slope.isfinite().all()


def test_a_teacher_that_is_sure_has_nothing_to_say_of_the_others():
    s = torch.tensor([[1.0, 0.3, 2.0]])
    t = torch.tensor([[0.5, -math.inf, -math.inf]])
    options = {"labels": torch.tensor([0]), "temperature": 2.0}
    value_of, slope = with_gradient(
        lambda s, t: losses.decoupled(student=s, teacher=t, **options), s, t
    )
    want = losses.soft_targets(student=s, teacher=t, temperature=2.0)
    torch.testing.assert_close(value_of, want)
    assert slope.isfinite().all()
    # Nor do its smallest probabilities, of which the other branch's gradient would be infinite.
    t, s = torch.tensor([[0.0, -95.0]]), torch.tensor([[0.0, 0.0]])
    assert with_gradient(EXCLUDING["jensen_shannon"], s, t)[1].isfinite().all()
    plain = with_gradient(
        lambda s, t: losses.soft_targets(student=s, teacher=t, temperature=1.0), s, t
    )
    assert plain[0] == pytest.approx(math.log(2)) and plain[1].isfinite().all()
