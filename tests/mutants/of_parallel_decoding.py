"""Of parallel decoding distillation: its weights, its bank of heads, its method and its sampler."""

from tests.mutants.mutant import of

MUTANTS = (
    *of(
        "diffusion/block_weights",
        "diffusion/block_weights",
        ("steps >= n[:, None]", "steps > n[:, None]"),
        ("steps < end[:, None]", "steps <= end[:, None]"),
        ("(to.alpha * start.sigma - start", "(to.alpha * start.sigma + start"),
        ("/ (start.sigma * to.sigma)", "/ (start.sigma * start.sigma)"),
        ("arriving(levels, grid[1:])", "levels.at(grid[1:])"),
        ("inside & rise.isinf()", "inside & rise.isnan()"),
        ("total.where(total > 0, 1)", "total"),
    ),
    *of(
        "models/head_bank",
        "models/head_bank",
        ("groups=rows", "groups=1"),
        ("(rows, combinations, -1))", "(combinations, rows, -1))"),
        ("transpose(0, 1).flatten(0, 1)", "flatten(0, 1)"),
        ("bias.flatten(1)[:, None]", "bias.flatten(1)[:1, None]"),
        ("weights @ self.bias", "self.bias"),
        ("layer.groups == 1 and ", ""),
        ('k) for k in ("stride",', "k) for k in ("),
        ("or heads.shape[-1] != self.heads", "or 0"),
    ),
    *of(
        "models/with_heads",
        "models/head_bank",
        ("if len(weights) > 1 else 0", "if len(weights) > 0 else 0"),
        ("if name not in bank:", "if name in bank:"),
        ("    freeze_alike(new, net)", "    pass"),
        ("    new.train(net.training)", "    pass"),
    ),
    *of(
        "diffusion/denoiser",
        "models/head_bank",
        ("cond.heads.ndim == 3", "cond.heads.ndim == 2"),
        ("Level(copies(level.alpha)", "Level(level.alpha"),
    ),
)
