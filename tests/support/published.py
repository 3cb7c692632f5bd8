"""Published U-ViTs: what the official repository says of each, and small networks of the same kinds."""

from math import exp

import torch

# Read off the official repository (baofff/U-ViT ce55170, MIT), configuration by configuration.
# channels, side, patch, width, depth, heads, label rows, final convolution, recomputes, tokens,
# parameters, tensors
NETWORKS = {
    "cifar10_uvit_small": (3, 32, 2, 512, 12, 8, -1, True, False, 257, 44_255_328, 164),
    "celeba64_uvit_small": (3, 64, 4, 512, 12, 8, -1, True, False, 257, 44_292_228, 164),
    "imagenet64_uvit_mid": (3, 64, 4, 768, 16, 12, 1000, True, True, 258, 130_940_292, 213),
    "imagenet64_uvit_large": (3, 64, 4, 1024, 20, 16, 1000, True, True, 258, 286_827_652, 261),
    "imagenet256_uvit_large": (4, 32, 2, 1024, 20, 16, 1001, True, True, 258, 286_763_172, 261),
    "imagenet256_uvit_huge": (4, 32, 2, 1152, 28, 16, 1001, False, True, 258, 500_832_016, 355),
    "imagenet512_uvit_large": (4, 64, 4, 1024, 20, 16, 1001, True, True, 258, 286_861_524, 261),
    "imagenet512_uvit_huge": (4, 64, 4, 1152, 28, 16, 1001, False, True, 258, 500_942_656, 355),
    "mscoco_uvit_small": (4, 32, 2, 512, 12, 8, -1, True, False, 334, 44_692_644, 166),
    "mscoco_uvit_small_deep": (4, 32, 2, 512, 16, 8, -1, True, False, 334, 58_345_636, 214),
}
# rate, betas, warm-up, batch, updates, p_uncond, sampler, its steps, their guidance s, FID
RECIPES = {
    "cifar10_uvit_small": (2e-4, (0.99, 0.999), 2500, 128, 500, 0, "euler-maruyama", 1000, 0, 3.11),
    "celeba64_uvit_small": (2e-4, (0.99, 0.99), 5000, 128, 500, 0, "euler-maruyama", 1000, 0, 2.87),
    "imagenet64_uvit_mid": (3e-4, (0.99, 0.99), 5000, 1024, 300, 0, "dpm-fast", 50, 0, 5.85),
    "imagenet64_uvit_large": (3e-4, (0.99, 0.99), 5000, 1024, 300, 0, "dpm-fast", 50, 0, 4.26),
    "imagenet256_uvit_large": (2e-4, (0.99, 0.99), 5000, 1024, 300, 0.15, "dpm-fast", 50, 0.4, 3.40),
    "imagenet256_uvit_huge": (2e-4, (0.99, 0.99), 5000, 1024, 500, 0.1, "dpmpp-3s", 50, 0.4, 2.29),
    "imagenet512_uvit_large": (2e-4, (0.99, 0.99), 5000, 1024, 500, 0.15, "dpm-fast", 50, 0.7, 4.67),
    "imagenet512_uvit_huge": (2e-4, (0.99, 0.99), 5000, 1024, 500, 0.1, "dpmpp-3s", 50, 0.7, 4.05),
    "mscoco_uvit_small": (2e-4, (0.9, 0.9), 5000, 256, 1000, 0.1, "dpmpp-3s", 50, 1.0, 5.95),
    "mscoco_uvit_small_deep": (2e-4, (0.9, 0.9), 5000, 256, 1000, 0.1, "dpmpp-3s", 50, 1.0, 5.48),
}  # fmt: skip
NAMES = list(NETWORKS)
TEXT = [name for name in NAMES if "coco" in name]
DISCRETE = [name for name in NAMES if "huge" in name or "coco" in name]
LATENT = [name for name in NAMES if "256" in name or "512" in name or "coco" in name]


def level_by_hand(name, t):
    """alpha of x_t at t, from the two forward processes as they are written down."""
    if name not in DISCRETE:
        return exp(-(0.1 * t + 9.95 * t**2)) ** 0.5
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    return float((1 - roots**2)[: round(1000 * t)].prod().sqrt())
