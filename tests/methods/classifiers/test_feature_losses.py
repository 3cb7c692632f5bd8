"""Feature matching and attention transfer, on ugly shapes."""

import pytest
import torch
from torch.nn import functional as F

from halfstep.errors import ConfigError
from halfstep.methods.losses import attention_transfer, feature_match


def made(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


SHAPES = {"vectors": (5, 3), "tokens": (5, 3, 4), "maps": (5, 3, 4, 6)}


@pytest.fixture(params=SHAPES)
def pair(request):
    shape = SHAPES[request.param]
    return {"student": made(*shape), "teacher": made(*shape, seed=1)}


def test_matching_is_the_mean_squared_error(pair):
    assert float(feature_match(**pair)) == pytest.approx(float(F.mse_loss(*pair.values())))
    each = feature_match(**pair, reduction="none")
    for k, (s, t) in enumerate(zip(*pair.values(), strict=True)):
        assert float(each[k]) == pytest.approx(float(F.mse_loss(s, t)))


def test_gradient_is_the_plain_ones(pair):
    student = pair["student"].requires_grad_()
    feature_match(**pair, normalise=True).backward()
    ours, student.grad = student.grad, None
    axes = tuple(range(1, student.ndim))
    error = (student - pair["teacher"]).square().sum(axes)
    (error / pair["teacher"].square().sum(axes)).mean().backward()
    torch.testing.assert_close(ours, student.grad, rtol=0, atol=1e-14)


def test_normalised_layers_count_alike_whatever_their_scale(pair):
    """F30: the raw sum of a layer at scale 1 and one at 30 is the second's alone."""
    loud = {name: 30 * x for name, x in pair.items()}
    assert float(feature_match(**loud) / feature_match(**pair)) == pytest.approx(900)
    quiet = feature_match(**pair, normalise=True)
    assert float(feature_match(**loud, normalise=True)) == pytest.approx(float(quiet), abs=1e-14)
    nothing = feature_match(
        student=torch.zeros_like(pair["teacher"]), teacher=pair["teacher"], normalise=True
    )
    assert float(nothing) == pytest.approx(1, abs=1e-15)


def test_a_teacher_of_zeros_normalises_by_one():
    student = made(5, 3).requires_grad_()
    loss = feature_match(student=student, teacher=torch.zeros(5, 3), normalise=True)
    torch.testing.assert_close(loss, student.square().mean())
    loss.backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(
    "shape, positions", [((5, 3), (5,)), ((5, 3, 4), (5, 3)), ((5, 3, 4, 6), (5, 4, 6))]
)
def test_masked_positions_do_not_count(shape, positions):
    student, teacher = made(*shape).requires_grad_(), made(*shape, seed=1)
    mask = made(*positions, seed=2) > 0
    mask.view(5, -1)[0], mask.view(5, -1)[1] = True, False
    counted = mask.unsqueeze(1 if len(shape) == 4 else -1).expand(shape)
    each = feature_match(student=student, teacher=teacher, mask=mask, reduction="none")
    relative = feature_match(
        student=student, teacher=teacher, mask=mask, normalise=True, reduction="none"
    )
    for k in range(5):
        if counted[k].any():
            error = F.mse_loss(student[k][counted[k]], teacher[k][counted[k]])
            power = teacher[k][counted[k]].square().mean()
            torch.testing.assert_close(each[k], error)
            torch.testing.assert_close(relative[k], error / power)
    assert each[1] == 0 and relative[1] == 0
    whole = feature_match(student=student, teacher=teacher, mask=mask)
    torch.testing.assert_close(whole, each.sum() / counted.flatten(1).any(1).sum())
    whole.backward()
    assert (student.grad[~counted] == 0).all() and student.grad.isfinite().all()
    single = feature_match(student=student, teacher=teacher, mask=counted)
    assert single == whole


def test_what_is_masked_may_be_anything():
    student, teacher = made(2, 3, 4), made(2, 3, 4, seed=1)
    student[:, 0] = torch.nan
    student.requires_grad_()
    mask = torch.tensor([[False, True, True]] * 2)
    loss = feature_match(student=student, teacher=teacher, mask=mask, normalise=True)
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all() and (student.grad[:, 0] == 0).all()


def test_an_empty_mask_costs_nothing():
    student = made(5, 3, 4).requires_grad_()
    mask = torch.zeros(5, 3, dtype=torch.bool)
    for normalise in (False, True):
        loss = feature_match(
            student=student, teacher=made(5, 3, 4, seed=1), mask=mask, normalise=normalise
        )
        loss.backward()
        assert loss == 0 and (student.grad == 0).all()


@pytest.mark.parametrize("shape, axis", [((5, 3, 4, 6), 1), ((5, 7, 3), -1)])
def test_attention_in_both_forms(shape, axis):
    """F19b's two values are 0.0104058 and 0.2040179, of 4 positions: 4 times one is the other's square."""
    student, teacher = made(*shape), made(*shape, seed=1)
    maps = []
    for x in (student, teacher):
        flat = x.square().mean(axis).flatten(1)
        maps.append(flat / flat.square().sum(-1, keepdim=True).sqrt())
    apart = (maps[0] - maps[1]).square()
    both = {"student": student, "teacher": teacher}
    code, paper = (attention_transfer(**both, form=form) for form in ("code", "paper"))
    assert float(code) == pytest.approx(float(apart.mean()), abs=1e-15)
    assert float(paper) == pytest.approx(float(apart.sum(-1).sqrt().mean()), abs=1e-15)
    each = attention_transfer(**both, form="code", reduction="none")
    length = attention_transfer(**both, form="paper", reduction="none")
    torch.testing.assert_close(apart.shape[1] * each, length.square())
    code, paper = 0.010405825779210877, 0.2040178990109532
    assert 4 * code == pytest.approx(paper**2, abs=1e-15)


def test_attention_sees_neither_channels_nor_scale():
    student, teacher = made(5, 3, 4, 6), made(5, 8, 4, 6, seed=1)
    plain = attention_transfer(student=student, teacher=teacher, form="paper")
    doubled = torch.cat([student, -student], dim=1)
    torch.testing.assert_close(
        attention_transfer(student=9 * doubled, teacher=teacher / 7, form="paper"), plain
    )


@pytest.mark.parametrize("form", ["paper", "code"])
def test_attention_is_finite_where_it_is_the_same_or_nothing(form):
    for student in (made(5, 3, 4, 6), torch.zeros(5, 3, 4, 6)):
        student = student.requires_grad_()
        loss = attention_transfer(student=student, teacher=student.detach().clone(), form=form)
        loss.backward()
        assert loss == 0 and (student.grad == 0).all()
    student = torch.zeros(5, 3, 4, 6, requires_grad=True)
    loss = attention_transfer(student=student, teacher=made(5, 3, 4, 6), form=form)
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


def test_refused():
    whole = {"student": made(5, 3, 4), "teacher": made(5, 3, 4)}
    with pytest.raises(ConfigError, match="project"):
        feature_match(student=made(5, 3, 4), teacher=made(5, 3, 6))
    with pytest.raises(ConfigError, match=r"give bool \[5, 3\]"):
        feature_match(**whole, mask=torch.ones(5, 4, dtype=torch.bool))
    with pytest.raises(ConfigError, match="mask is float32"):
        feature_match(**whole, mask=torch.ones(5, 3))
    with pytest.raises(ConfigError, match="same positions"):
        attention_transfer(student=made(5, 3, 4), teacher=made(5, 6, 4), form="code")
    with pytest.raises(ConfigError, match="or tokens"):
        attention_transfer(student=made(5, 3), teacher=made(5, 3), form="code")
    with pytest.raises(ConfigError, match="form 'article'"):
        attention_transfer(**whole, form="article")
    with pytest.raises(ConfigError, match="int64"):
        feature_match(student=made(5, 3).long(), teacher=made(5, 3))
