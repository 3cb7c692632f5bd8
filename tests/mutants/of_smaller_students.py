"""Mutants of the methods that make smaller students."""

from tests.mutants.mutant import of

MUTANTS = (
    *of(
        "methods/diffusion/imitation",
        "methods/diffusion/shrink",
        ("share=self.denoising / whole", "share=self.output / whole"),
        ("torch.lerp(teacher.eps, data.eps, share)", "torch.lerp(data.eps, teacher.eps, share)"),
        ("loss = whole * self", "loss = self"),
    ),
    *of(
        "methods/diffusion/block_features",
        "methods/diffusion/shrink",
        ("normalise=True, mask=inliers", "normalise=False, mask=inliers"),
        ("normalise=True, mask=inliers", "normalise=True, mask=None"),
        ("inliers = (full - mean)", "inliers = (student - mean)"),
        ("[: len(a), self.extras :]", "[-len(a) :, self.extras :]"),
    ),
    *of(
        "methods/diffusion/shrink",
        "methods/diffusion/shrink",
        ("0.0 if guided else 0.1", "0.1"),
    ),
    *of(
        "methods/diffusion/block_features",
        "methods/diffusion/shrink",
        ("if narrower else ()", "if not narrower else ()"),
        ("projector(shape(p.student_width)", "projector(shape(p.teacher_width)"),
    ),
    *of(
        "methods/diffusion/chain",
        "methods/diffusion/shrink",
        ("            levels=self.levels,\n", ""),
        ("guidance_embed_dim=self.guidance_embed_dim,", ""),
        ("updates=self.guided_updates,", ""),
        ("        self.then.check(teacher)\n", ""),
        ('.get("shrink")', '.get("then")'),
    ),
    *of(
        "methods/diffusion/block_scores",
        "methods/diffusion/shrink",
        ("torch.arange(count) * len(data) // count", "torch.arange(count)"),
        ("return total / count", "return -total / count"),
    ),
)
