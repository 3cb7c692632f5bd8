"""Of data."""

from tests.mutants.mutant import of

MUTANTS = (
    *of(
        "data/captions",
        "captions",
        ('"utf-8-sig"', '"utf-8"'),
        (".extend(captions)", ".append(captions[0])"),
    ),
    *of(
        "data/latents",
        "latents",
        ("draw.uniform() < 0.5", "draw.uniform() < 0.4"),
        (
            "self.moments.rows(self.views * rows + view)",
            "self.moments.rows(self.views * rows - view)",
        ),
        ("codec.drawn(moments, noise, self.scale)", "codec.drawn(moments, noise, 1.0)"),
        ("mean * self.scale", "mean / self.scale"),
        ("chunk(2, dim=1)[0]", "chunk(2, dim=1)[1]"),
        ("self.offsets[rows + 1] - first", "self.offsets[rows + 1] - first - 1"),
    ),
    *of("data/shards", "latents", ("right=True", "right=False")),
    *of(
        "data/encoding",
        "latents",
        ("images.flip(-1)", "images.flip(-2)"),
        ("torch.tensor([0, *itertools", "torch.tensor([1, *itertools"),
        ("codec.eval()", "codec.train()"),
    ),
    *of(
        "pixels",
        "pixels",
        ("pixels.float().div_(127.5)", "pixels.float().div_(128)"),
        (".div_(127.5).sub_(1)", ".div_(127.5).sub_(0)"),
        ("low < -1 - OVER or high > 1", "low < -1 - OVER and high > 1"),
        ("OVER = 0.25", "OVER = 1.25"),
        ("OVER = 0.25", "OVER = 0.0"),
        ("low >= 0 and high > 1 + OVER", "low > 0 and high > 1 + OVER"),
        ("low >= 0 and high > 1 + OVER", "high > 1 + OVER"),
        ("(low, high) == (0, 1)", "low >= 0"),
        ("abs(low) < torch.inf and abs(high)", "low == low and abs(high)"),
        ("values.shape[1] not in (1, 3)", "values.shape[1] not in (1, 2, 3)"),
    ),
    *of("data/streamed", "latents", ("return scaled(", "return torch.Tensor.float(")),
    *of(
        "data/resumed",
        "latents",
        ('entry["source"] != images.digest(rows)', 'entry["source"] == images.digest(rows)'),
    ),
    *of(
        "data/dataset",
        "data",
        ("x0 = scaled(x0)", "x0 = x0.float()"),
        ("x0.flip(-1)", "x0.flip(-2)"),
    ),
    *of("data/order", "data", ("[seed, stage, epoch]", "[seed, stage]")),
    *of(
        "data/augment",
        "augment",
        ("seed = key(self.seed, view, block)", "seed = key(self.seed, view)"),
        ("x = share * x + (1 - share) * other", "x = share * x + (1 + share) * other"),
        ("draw.integers(self.views)", "draw.integers(self.views - 1)"),
        ("drawn = [{k: v[draw.rows] for", "drawn = [{k: v[: len(x0)] for"),
    ),
    *of(
        "data/labels",
        "labels",
        ("(sure >= threshold)", "(sure > threshold)"),
        ("descending=True", "descending=False"),
    ),
)
