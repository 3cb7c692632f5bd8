"""Normal features, and the kernel distance of two Gaussians in closed form."""

import torch

from tests.support.denoisers import seeded


def normal(n, size, seed=0, dtype=torch.float64):
    return torch.randn(n, size, generator=seeded(seed), dtype=dtype)


def gaussian_kernel_mean(m1, c1, m2, c2):
    """E (x'y / D + 1)^3 of independent Gaussians, from their first three moments."""
    size, moments = len(m1), []
    for m, c in ((m1, c1), (m2, c2)):
        second = c + torch.outer(m, m)
        third = torch.einsum("i,jk->ijk", m, c)
        third = third + third.permute(1, 0, 2) + third.permute(2, 1, 0)
        moments.append((m, second, third + torch.einsum("i,j,k->ijk", m, m, m)))
    s1, s2, s3 = (float((a * b).sum()) for a, b in zip(*moments, strict=True))
    return 1 + 3 * s1 / size + 3 * s2 / size**2 + s3 / size**3


def gaussian_kernel_distance(m1, c1, m2, c2):
    a, b = (m1, c1), (m2, c2)
    return (
        gaussian_kernel_mean(*a, *a)
        + gaussian_kernel_mean(*b, *b)
        - 2 * gaussian_kernel_mean(*a, *b)
    )


def pictures(*shape, seed=0):
    """Random images in [-1, 1]."""
    return torch.rand(*shape, generator=seeded(seed)) * 2 - 1
