"""Mutants of the pages: numbers under their headers, points at their places."""

from tests.mutants.mutant import of

GRID, LEARNED = (
    "measured(row.split and row.split.grid, 4)",
    "measured(row.split and row.split.learning, 4)",
)
NEAR, HELD = "measured(row.memorisation.train, 3)", "measured(row.memorisation.held_out, 3)"
NEXT = " }}</td><td>{{ "
MUTANTS = (
    *of(
        "report/page",
        "report/report_numbers",
        ("faster = slow / seconds if", "faster = seconds / slow if"),
        ("difference=distance.value - teacher.value", "difference=teacher.value - distance.value"),
        ("(distance.value - floor) / (teacher.value - floor)", "distance.value / teacher.value"),
        ("get(batches[-1]) if", "get(batches[0]) if"),
        ("ratio=words.decisive_ratio(report, row)", "ratio=row.ratio"),
        ("row.compressed.student == student.name", "True"),
        ('row.role == "baseline" else students', 'row.role != "student" else students'),
        (
            "*baselines, *report.students, *compressed]",
            "*report.students, *baselines, *compressed]",
        ),
        ('"kernel_distance": "kernel distance"', '"kernel_distance": "precision"'),
    ),
    *of(
        "report/page.html.j2",
        "report/report_numbers",
        (
            "<td>{{ row.steps }}</td><td>{{ row.calls }}</td>",
            "<td>{{ row.calls }}</td><td>{{ row.steps }}</td>",
        ),
        (GRID + NEXT + LEARNED, LEARNED + NEXT + GRID),
        (NEAR + NEXT + HELD, HELD + NEXT + NEAR),
        ("measured(row.memorisation.train, 3)", "measured(row.memorisation.held_out, 3)"),
        ("measured(row.memorisation.ratio, 2)", "measured(row.memorisation.train, 2)"),
        (
            "measured(row.fidelity and row.fidelity.rmse, 4)",
            "measured(row.fidelity and row.fidelity.feature_rmse, 4)",
        ),
        (
            "{{ '{:,}'.format(run.cost[name].updates) }}",
            "{{ '{:,}'.format(run.cost[name].forwards) }}",
        ),
        ("measured(line.distance, places.frechet_distance)", "measured(line.ratio, 2)"),
        ("{{ costs.parameters | big }}", "{{ costs.multiply_adds | big }}"),
        (
            "costs.seconds_per_sample.get(b)",
            "costs.seconds_per_sample.get(cost.batches[0])",
        ),
        ("costs.peak_bytes | big('B')", "costs.parameters | big('B')"),
        ("measured(decision.ratio, 3)", "measured(decision.ratio and students[0].ratio, 3)"),
        ("c.low | percent }} to {{ c.high", "c.high | percent }} to {{ c.low"),
        (
            "change.change.low | percent }} to {{ change.change.high",
            "change.change.high | percent }} to {{ change.change.low",
        ),
        ("'%g' | format(100 * first.limit)", "'%g' | format(first.limit)"),
        ("line.baseline.calls != line.row.calls", "line.baseline.calls == line.row.calls"),
    ),
    *of(
        "report/compressed.html.j2",
        "report/report_numbers",
        ("measured(compression.ratio, 2)", "measured(row.ratio, 2)"),
        ("format(100 * compression.zeros)", "format(compression.zeros)"),
        ("compression.bytes | big('B')", "row.cost.peak_bytes | big('B')"),
    ),
    *of(
        "report/guided_table.html.j2",
        "report/report_numbers",
        ("cell(row.distance, guided.places.distance)", "cell(row.rmse, guided.places.rmse)"),
        ("cell(row.floor_ratio, 2)", "cell(row.distance, 2)"),
        ("'{:,}'.format(row.calls)", "'{:,}'.format(row.steps)"),
    ),
    *of(
        "report/guided.html.j2",
        "report/report_numbers",
        (
            "row.data_distance | figure(guided.places.data_distance)",
            "row.inception_score | figure(guided.places.data_distance)",
        ),
        ("'%g' | format(row.guidance_scale)", "'%g' | format(row.steps)"),
    ),
    *of(
        "report/sizes.html.j2",
        "report/report_numbers",
        ("line.parameters | big", "line.multiply_adds | big"),
        ("{{ 'yes' if line.front }}", "{{ 'yes' if not line.front }}"),
        ("'{:,}'.format(line.calls)", "'{:,}'.format(line.steps)"),
    ),
    *of(
        "report/reconstruction.html.j2",
        "report/report_numbers",
        ("measured(row.full, 4)", "measured(row.same, 4)"),
    ),
    *of(
        "report/slider.html.j2",
        "report/report_numbers",
        ("value(student.numbers[loop.index0])", "value(teacher.numbers[loop.index0])"),
    ),
    *of(
        "report/slider",
        "report/report_numbers",
        (
            '"distance": "Fréchet distance to the guided teacher"',
            '"distance": "paired error (rms)"',
        ),
        ("_number(row.floor_ratio, 2)", "_number(row.distance, 2)"),
    ),
    *of(
        "report/words/numbers",
        "report/report_numbers report/report",
        ("figure(measured.low, decimals)} to", "figure(measured.high, decimals)} to"),
        ('(1e-3, "ms"))', '(1e-3, "µs"))'),
        ('(1e6, "M"), (1e3, "k")', '(1e6, "M"), (1024, "k")'),
        ("figure(100 * value, 1)", "figure(value, 1)"),
    ),
    *of(
        "report/plots/sizes",
        "report/report_numbers report/report_drawings",
        ("taken[max(taken)]", "taken[min(taken)]"),
        ("taken[max(taken)]", "taken[max(taken, key=str)]"),
        ("(line.multiply_adds, line.name)", "(-line.multiply_adds, line.name)"),
        ("line.frechet.low, line.frechet.high)", "line.frechet.high, line.frechet.low)"),
        ('where="post"', 'where="pre"'),
        ("if line.front and getattr(line, at)", "if getattr(line, at)"),
    ),
    *of(
        "report/plots/figures",
        "report/report_drawings",
        ("row.split.grid if row.split", "row.split.learning if row.split"),
        ("row.fidelity.rmse if row.fidelity", "row.fidelity.feature_rmse if row.fidelity"),
        (
            "measured.value, measured.low, measured.high",
            "measured.value, measured.high, measured.low",
        ),
        (
            "(score, row.data_distance, row.data_distance, row.data_distance)",
            "(row.data_distance, score, score, score)",
        ),
        ("rows.append((label, *_ends(measured)))", "rows.append((label, *_ends(row.ratio)))"),
        (
            "(row.calls, row.distances.frechet_distance) for row in sampler_rows",
            "(row.steps, row.distances.frechet_distance) for row in sampler_rows",
        ),
        (
            "(row.calls, row.distances.frechet_distance) for row in report",
            "(row.steps, row.distances.frechet_distance) for row in report",
        ),
        ("update.loss for update in updates", "update.rate for update in updates"),
        (
            'ReferenceLine("sampling floor", floor, floor, floor',
            'ReferenceLine("sampling floor", 2 * floor, floor, floor',
        ),
        (
            'f"{row.guidance_scale:g}" for row, _ in scored_rows',
            'f"{row.steps:g}" for row, _ in scored_rows',
        ),
    ),
    *of(
        "report/plots/training",
        "report/report_drawings",
        ("float(before + last.update)", "float(last.update)"),
        ("before += updates[-1].update", "before = updates[-1].update"),
        ("sum(losses) / len(losses)", "sum(losses)"),
        ("for update in part], part[-1]", "for update in part], part[0]"),
        ("min(losses),", "max(losses),"),
        ("(first + last) / 2", "last"),
        ("        first = last\n", "        first = last - first\n"),
    ),
    *of(
        "report/plots/curves",
        "report/report_drawings",
        ("axis.plot([left, right], [k, k]", "axis.plot([value, right], [k, k]"),
        ("axis.set_ylim(len(rows) - 0.4, -0.6)", "axis.set_ylim(-0.6, len(rows) - 0.4)"),
        ("axis.axvspan(low - margin, tolerance", "axis.axvspan(tolerance, high + margin"),
        ("max(level.low, bottom), level.high,", "max(level.low, bottom), level.value,"),
        ("tops = [p[3] for s in series", "tops = [p[1] for s in series"),
        ("axis.axvline(1, color", "axis.axvline(0, color"),
    ),
    *of(
        "report/plots/axes",
        "report/report_drawings",
        ("for p in points], [max(p[3], bottom)", "for p in points], [max(p[1], bottom)"),
        ("y = [max(p[1], bottom) for", "y = [max(p[2], bottom) for"),
    ),
    *of(
        "report/images/grids",
        "report/report_numbers",
        ("zip(labels, stack, strict=True)", "zip(labels[::-1], stack, strict=True)"),
        ("for picture in row])", "for picture in row[::-1]])"),
        ('("grid", "worst")', '("worst",)'),
    ),
    *of(
        "report/images/png",
        "report/png",
        ("for x in (above, below)]", "for x in (below, above)]"),
        ("zip(axes[k], (left, right), strict=True)", "zip(axes[k], (right, left), strict=True)"),
        (
            "(k // columns) * (height + gap), (k % columns)",
            "(k % columns) * (height + gap), (k // columns)",
        ),
        ("(images + 1) * 127.5", "(images + 1) * 127"),
        ("first + k:06d", "k:06d"),
    ),
    *of(
        "cli/console/columns",
        "cli/tables",
        ("self.add_column(printable(head)", "self.add_column(head"),
        ("(printable(str(cell)) for cell in cells)", "map(str, cells)"),
    ),
    *of("report/words/numbers", "report/report", ("ALMOST = 0.9995", "ALMOST = 1.0")),
    *of(
        "report/guided_table",
        "report/slider",
        ("abs(measured - scale)", "(measured - scale)"),
        ("row.name.removeprefix(STUDENT) == label", "row.name == label"),
    ),
    *of(
        "report/slider",
        "report/slider",
        ("(at == 1) == (scale == 1)", "(at > 0) == (scale > 0)"),
        ("len(pictures.labels) // 2", "1"),
    ),
    *of("report/plots/sizes", "cli/shrink", ("other[1] <= point[1]", "other[1] < point[1]")),
)
