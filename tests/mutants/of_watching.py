"""Of watching a run: its log, trackers, pictures, and options that change within it."""

from tests.mutants.mutant import of

MUTANTS = (
    *of(
        "training/option_changes",
        "training/option_changes",
        ("if place_of(change) <= place:", "if place_of(change) < place:"),
        ("if place_of(change) <= place:", 'if change["update"] <= place.update:'),
        ("if place_of(change) < place]", "if place_of(change) <= place]"),
        ('changes[-1]["values"] if changes else begun', "begun"),
        ("{**last, **values}", "values"),
    ),
    *of(
        "training/loop",
        "training/option_changes",
        (
            "self.settings.rate_at(update, stage.updates, highest)",
            "self.settings.rate_at(update, stage.updates)",
        ),
        (
            "place = Place(index, update)\n            highest",
            "place = Place(0, update)\n            highest",
        ),
    ),
    *of(
        "training/run_identity",
        "training/option_changes",
        ("or name in CHANGEABLE:", 'or name in (*CHANGEABLE, "weight_decay"):'),
    ),
    *of(
        "training/pace",
        "training/watch",
        ("samples / max(", "samples * max("),
        ("        self._since = self._clock()\n", "        self._since = 0.0\n"),
        (".rss)", ".rss // 2)"),
    ),
    *of(
        "training/loop",
        "training/watch",
        ("tally.count * self.settings.batch_size", "self.settings.batch_size"),
        ("                    self.watch.pace.restart()\n", "                    pass\n"),
        ("began += self.watch.show", "self.watch.show"),
    ),
    *of(
        "training/watch",
        "training/watch",
        ("stack.enter_context(state.average.swapped_into(stage.student))", "pass"),
        ("stack.enter_context(evaluating(stage.student))", "pass"),
        ("or update == stage.updates", ""),
        ("int(number) > update", "int(number) < update"),
        ("except torch.OutOfMemoryError:", "except ZeroDivisionError:"),
    ),
    *of(
        "training/watch",
        "training/trackers",
        ("self._before += stage.updates", "pass"),
        ("self.trackers.start, self._before + update", "self.trackers.start, self._before"),
        ("and stage.name not in self._decided", ""),
    ),
    *of(
        "training/trackers",
        "training/trackers",
        ("spec is None or spec.origin is None", "spec is None"),
        ("step + 1 if step", "step if step"),
        ("            (self._started or {}).pop(name, None)\n", ""),
    ),
    *of(
        "training/sample_grid",
        "training/watch",
        ("torch.arange(n) * count // n", "torch.arange(n)"),
        ("sum(scales) / 2", "scales[1]"),
        ("if walks and student.class_names and", "if student.class_names and"),
    ),
    *of(
        "training/ema",
        "training/watch",
        ("            self._swap(module, own)\n", "            pass\n"),
        ("                value.copy_(copied)\n", "                pass\n"),
        ("value if before is None else before", "value"),
    ),
    *of(
        "pictures",
        "training/watch",
        ("SIDE - 2 - y : SIDE + 1 - y", "y - 1 : y + 2"),
        ("points.double() / PLANE + 1", "points.double() / PLANE"),
    ),
)
