"""Of the command line."""

from tests.mutants.mutant import of

MUTANTS = (
    *of(
        "cli/parse",
        "cli/cli cli/options",
        (
            "values |= from_file(kind, path, words)",
            "values = from_file(kind, path, words) | values",
        ),
        ("takes - len(current)", "takes"),
        ("if words:\n        raise", "if False:\n        raise"),
        ("current = current if room else unnamed", "current = current"),
    ),
    *of(
        "cli/names",
        "cli/help",
        ("if option in valid), None)", "), None)"),
    ),
    *of(
        "cli/parse",
        "sizes cli/sizes",
        ("if Path in (option.type,", "if False and Path in (option.type,"),
    ),
    *of(
        "cli/commands/distill",
        "cli/diffusers_teachers",
        ("None if options.lora.build() is None else AUTOCAST[options.training.precision]", "None"),
        ("return kept or official", "return official"),
    ),
    *of("cli/__init__", "cli/sizes", ('"ignore", message=', '"always", message=')),
    *of("cli/console/progress", "cli/folders", ("if sys.stdout is not None else None", "")),
    *of(
        "cli/console/run_plan",
        "cli/shrink",
        ("network = unwrap(first.student)", "network = first.student"),
    ),
    *of(
        "cli/console/tables",
        "cli/tables",
        ("str(row.distance)", "str(row.rmse or row.distance)"),
        (
            "str(row.calls),\n            str(row.distances",
            "str(row.steps),\n            str(row.distances",
        ),
        ("row.fidelity.rmse if", "row.fidelity.feature_rmse if"),
    ),
    *of(
        "cli/console/tables",
        "cli/tables",
        ("big(line.multiply_adds)", "big(line.parameters)"),
    ),
    *of("cli/console/tables", "cli/tables", ("1000 * taken[b]", "taken[b]")),
    *of(
        "cli/commands/compress",
        "cli/tables",
        ("1000 * row.seconds_per_image", "row.seconds_per_image"),
        ("{agreement.value:.2%}", "{row.scores.accuracy.value:.2%}"),
    ),
    *of(
        "cli/console/tables",
        "cli/tables",
        ("_cell(row.full), _cell(row.same)", "_cell(row.same), _cell(row.full)"),
    ),
    *of("cli/__init__", "cli/cli", ('"AUTO,STRICT"', '"AUTO"')),
    *of("cli/commands/distill", "cli/gate", ("if gate and best is None", "if False")),
    *of(
        "cli/console/progress",
        "cli/progress",
        ("updates * DAY / seconds", "updates * seconds / DAY"),
        ("if seconds <= DAY:", "if seconds < DAY:"),
        ("remaining * self._price + self._ahead", "remaining * self._price"),
        ("due = self._shown is None or", "due ="),
    ),
    *of(
        "methods/stages",
        "cli/progress",
        ("sum(stage.cost(batch) for stage in plan[names", "sum(batch for stage in plan[names"),
    ),
)
