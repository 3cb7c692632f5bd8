"""Of workflows."""

from tests.mutants.mutant import of

MUTANTS = (
    *of(
        "workflows/images",
        "cli/encode",
        ("> 127", "< 127"),
        ("class_names.index(n) if", "names.index(n) if"),
        ("range(first, first + n)", "range(n)"),
    ),
    *of("workflows/noise_file", "cli/encode", ("and bool(noise.isfinite().all())", "")),
    *of(
        "workflows/train_codec",
        "cli/codec",
        ("net.decode(latents * net.scale)", "net.decode(latents)"),
        ("min(2**level, 4)", "min(2**level, 8)"),
        ("* len(data) // count", ""),
        ("gcd(options.width, 128) // 4", "gcd(options.width, 128)"),
        ("sample_latents(moments, noise, 1.0)", "sample_latents(moments, noise, net.scale)"),
        ("LOG_VARIANCE = -6.0", "LOG_VARIANCE = 0.0"),
    ),
    *of("workflows/run_options", "cli/folders", ("        extend=folder.extend,\n", "")),
    *of(
        "workflows/dry_run",
        "cli/shrink",
        ("_in_fp32(unwrap(module.to(device)), device)", "_in_fp32(module.to(device), device)"),
    ),
    *of(
        "workflows/run_options",
        "cli/two_processes",
        ('("data", "validate", "init")', '("validate", "init")'),
        ('("data", "validate", "init")', '("data", "init")'),
        ('("data", "validate", "init")', '("data", "validate")'),
        ("return kind if kind in BELOW else features", "return features"),
        ("return kind if kind in BELOW else features", "return kind"),
    ),
    *of(
        "workflows/distill_classifier",
        "cli/two_processes",
        ("job=job.validated_on(self.held_out)", "job=job"),
    ),
    *of("workflows/model_card", "cli/tables", ("1000 * s:.3g", "s:.3g")),
    *of(
        "workflows/evaluation_inputs",
        "workflows/evaluation_inputs",
        ("data.shape[-1] * teacher.codec.factor", "data.shape[-1]"),
        ('self.data is None and "data" not in', 'self.data is None and "data" in'),
    ),
    *of(
        "workflows/report",
        "report/slider",
        ("    if out is None:\n        raise", "    if False:\n        raise"),
    ),
)
