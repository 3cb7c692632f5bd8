"""Of workflows."""

from tests.mutants.mutant import of

MUTANTS = (
    *of(
        "workflows/diffusers_proof",
        "workflows/export_diffusers",
        ("if not difference <= NEAR:", "if False:"),
    ),
    *of("workflows/push", "workflows/export_diffusers", ("exist_ok=True", "exist_ok=False")),
    *of(
        "workflows/teacher_latents",
        "cli/teacher_images",
        ("prompts[k % len(prompts)]", "prompts[0]"),
        ("Layout(mirror=self.flip)", "Layout()"),
        ("rows % super().__len__()", "rows"),
    ),
    *of(
        "workflows/images",
        "cli/teacher_images",
        ("{names[label] for label in used} & set(class_names)", "used"),
    ),
    *of(
        "workflows/locate",
        "cli/diffusers_teachers",
        (" and not path.parent.exists()", ""),
        ("_refuse_for_own(diffusers, f\"'{place}'\")", "pass"),
    ),
    *of(
        "training/api",
        "cli/diffusers_teachers",
        ('description.pop("origin", None)', 'description.get("origin", None)'),
    ),
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
        ('"data", "validate", "init", "te', '"validate", "init", "te'),
        ('"data", "validate", "init", "te', '"data", "init", "te'),
        ('"data", "validate", "init", "te', '"data", "validate", "te'),
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
    *of(
        "workflows/walk",
        "workflows/grid",
        ("abs(a[0] - b[0]) > SAME_LABEL", "False"),
        ("for k, (a, b) in pairs if not parts else ():", "for k, (a, b) in ():"),
        ("SAME = 3e-4", "SAME = 1e-5"),
        ("last < WASTED / walk.steps", "last < 0"),
        ("if not _near(walk, end, walk, next_)]", "if _near(walk, end, walk, next_)]"),
        (
            "if not _near(walk, walk.sigmas[0], walk, top):",
            "if _near(walk, walk.sigmas[0], walk, top):",
        ),
        ("if alpha == 0 and config", "if config"),
    ),
    *of(
        "workflows/pipeline_sigmas",
        "workflows/pipeline_sigmas",
    ),
    *of(
        "workflows/runtimes",
        "workflows/grid",
        ("FlowTable(exp(mu), levels=10_000)", "FlowTable(mu, levels=10_000)"),
        ("None if steps == 1 else 1 / steps", "1 / steps"),
        (
            "scheduler_from_config(name, config, shift=static), steps, **shift",
            "scheduler_from_config(name, config), steps, **shift",
        ),
    ),
    *of(
        "workflows/scheduler_folder",
        "workflows/grid",
        ("Annotated[int, Ge(1), Le(1_000_000)]", "int"),
        ("len(betas) != levels", "False"),
        ('library not in (None, "diffusers")', "False"),
        ("name not in READABLE or ", ""),
        ('config.get("shift", 1.0) == 1', "True"),
        ("round(1 / end)", "round(2 / end)"),
    ),
    *of(
        "workflows/export_comfyui",
        "workflows/export_comfyui",
        ("ours[name], theirs[name], dtype", "ours[name], ours[name], dtype"),
        ("not difference <= NEAR", "False"),
    ),
)
