"""Losses: value and gradient are those of the plain formula, where that is stable."""

import pytest
import torch
from torch.nn import functional as F

from halfstep.methods import losses

B, C = 5, 4
S, T = (torch.randn(B, C, generator=torch.Generator().manual_seed(k)).double() for k in (1, 2))
Y = torch.tensor([3, 0, 2, 2, 1])


def plain_kl(p, q):
    return (p * (p / q).log()).sum(-1)


def plain_decoupled(s):
    q, p = (s / 3).softmax(-1), (T / 3).softmax(-1)
    hot = F.one_hot(Y, C).bool()
    pairs = [torch.stack([x[hot], 1 - x[hot]], -1) for x in (p, q)]
    rests = [x[~hot].reshape(B, C - 1) / (1 - x[hot])[:, None] for x in (p, q)]
    return 9 * (2 * plain_kl(*pairs) + 5 * plain_kl(*rests)).mean()


def plain_jensen_shannon(s):
    q, p = (s / 2).softmax(-1), (T / 2).softmax(-1)
    m = 0.3 * p + 0.7 * q
    return (0.3 * plain_kl(p, m) + 0.7 * plain_kl(q, m)).mean()


def plain_dist(s):
    def pearson(x, y):
        return torch.stack(
            [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(x, y, strict=True)]
        )

    q, p = (s / 2).softmax(-1), (T / 2).softmax(-1)
    return 3 * (1 - pearson(q, p).mean()) + 2 * (1 - pearson(q.T, p.T).mean())


def plain_distance(s):
    def apart(x):
        d = torch.stack([torch.stack([(a - b + 1e-300).norm() for b in x]) for a in x])
        return d / d[~torch.eye(B, dtype=torch.bool)].mean()

    return F.smooth_l1_loss(apart(s), apart(T))


def plain_angle(s, whole=True):
    def cosines(x):
        return torch.stack(
            [
                F.cosine_similarity(x[j] - x[i], x[k] - x[i], dim=0, eps=1e-30)
                for i in range(B)
                for j in range(B)
                for k in range(B)
                if i not in (j, k)
            ]
        )

    each = F.smooth_l1_loss(cosines(s), cosines(T), reduction="none").reshape(B, -1).sum(-1) / B**2
    return each.mean() if whole else each


PLAIN = {
    "soft_targets": (
        {"temperature": 3},
        lambda s: 9 * plain_kl((T / 3).softmax(-1), (s / 3).softmax(-1)).mean(),
    ),
    "soft_cross_entropy": (
        {"temperature": 3},
        lambda s: F.cross_entropy(s / 3, (T / 3).softmax(-1)),
    ),
    "jensen_shannon": ({"temperature": 2, "teacher_share": 0.3}, plain_jensen_shannon),
    "hard_labels": (
        {"labels": Y, "smoothing": 0.2},
        lambda s: F.cross_entropy(s, 0.8 * F.one_hot(Y, C).double() + 0.05),
    ),
    "hard_distillation": ({}, lambda s: F.cross_entropy(s, T.argmax(-1))),
    "hinton_mixture": (
        {"labels": Y, "temperature": 3, "soft_weight": 2.0, "hard_weight": 0.5},
        lambda s: (
            18 * plain_kl((T / 3).softmax(-1), (s / 3).softmax(-1)).mean()
            + 0.5 * F.cross_entropy(s, Y)
        ),
    ),
    "report_mixture": (
        {"labels": Y, "temperature": 3, "soft_weight": 3.0, "hard_weight": 1.0},
        lambda s: 0.75 * F.cross_entropy(s / 3, (T / 3).softmax(-1)) + 0.25 * F.cross_entropy(s, Y),
    ),
    "tang": (
        {"labels": Y, "hard_share": 0.3},
        lambda s: 0.3 * F.cross_entropy(s, Y) + 0.7 * F.mse_loss(s, T),
    ),
    "logit_match": ({}, lambda s: F.mse_loss(s, T)),
    "logit_half_sum": ({}, lambda s: F.mse_loss(s, T) * C / 2),
    "decoupled": (
        {"labels": Y, "temperature": 3, "target_weight": 2.0, "others_weight": 5.0},
        plain_decoupled,
    ),
    "dist": ({"temperature": 2, "inter_weight": 3, "intra_weight": 2}, plain_dist),
    "relational_distance": ({}, plain_distance),
    "relational_angle": ({}, plain_angle),
}


@pytest.mark.parametrize("name", PLAIN)
def test_value_and_gradient_are_the_plain_formulas(name):
    arguments, plain = PLAIN[name]
    loss = getattr(losses, name)
    if name != "hard_labels":
        arguments = {**arguments, "teacher": T}
    s = S.clone().requires_grad_()
    value = plain(s)
    value.backward()
    torch.testing.assert_close(loss(student=S, **arguments), value.detach(), rtol=0, atol=1e-12)
    ours = S.clone().requires_grad_()
    loss(student=ours, **arguments).backward()
    torch.testing.assert_close(ours.grad, s.grad, rtol=0, atol=1e-12)


def test_an_angle_belongs_to_its_vertex():
    each = losses.relational_angle(student=S, teacher=T, reduction="none")
    torch.testing.assert_close(each, plain_angle(S, whole=False), rtol=0, atol=1e-12)
