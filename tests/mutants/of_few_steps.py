"""Mutants of students that serve several numbers of steps."""

from tests.mutants.mutant import of

GRIDS = "training/several_grids"
END = "models/with_end_time"
MUTANTS = (
    *of(
        "methods/diffusion/matching",
        "methods/diffusion/walks",
        ("(self.walk_length - 1) * (self.forwards", "self.walk_length * (self.forwards"),
    ),
    *of(
        "models/end_time_embedding",
        END,
        ("nn.init.zeros_(self.leave.weight)", "pass"),
        ("nn.init.zeros_(self.leave.bias)", "nn.init.ones_(self.leave.bias)"),
        ("features % 2:", "False:"),
    ),
    *of(
        "models/diffusers_net",
        END,
        ("end if embedded is None else embedded + end", "end"),
        ("self.guidance and", "None and self.guidance and"),
    ),
    *of(
        "models/mlp",
        END,
        ("condition = condition + self.end(t_end)", "pass"),
    ),
    *of("models/uvit/model", END, ("time = time + self.t_end_embed(t_end)", "pass")),
    *of(
        "diffusion/denoiser",
        END,
        ("lambda t: arriving(schedule, t)", "schedule.at"),
        ("cond.t_end.shape != t.shape", "False"),
        ("t_end=self.time.arriving(", "t_end=self.time("),
    ),
    *of("batch", END, ('KEPT = ("guidance_scale", "heads", "t_end")', 'KEPT = ("guidance_scale", "heads")')),
    *of("batch", END, ('"guidance_scale", "heads", "t_end")\n"""The', '"guidance_scale", "heads")\n"""The')),
    *of(
        "models/__init__",
        END,
        ('"guidance_embed_dim", "t_end_embed_dim", "learned', '"guidance_embed_dim", "learned'),
    ),
    *of(
        "diffusion/samplers/toward_next",
        "diffusion/samplers/toward_next",
        ("grid[1:][here", "grid[:-1][here"),
        ("grid[:-1]\n", "grid[1:]\n"),
    ),
    *of(
        "pipeline/samplers",
        "diffusion/samplers/toward_next",
        ("if trained_for in TOLD and sampler != trained_for", "if False"),
        ("if sampler in TOLD and trained_for != sampler", "if False"),
        ("if sampler in TOLD and not times", "if False"),
    ),
    *of(
        "pipeline/torch_export",
        "diffusion/samplers/toward_next",
        ("denoiser.time.arriving(grid[1:]", "denoiser.time.arriving(grid[:-1]"),
    ),
    *of(
        "diffusion/time_grids",
        "diffusion/time_grids",
        ("if not equal <= steps <= count:", "if not equal <= steps < count:"),
        ("count & -count", "count"),
        ("[equal - halved :]", "[:halved]"),
        ("end - length // 2 for end", "end for end"),
    ),
    *of(
        "evaluation/gate",
        GRIDS,
        ("decision.steps, decision.weights) == (stage, steps,", "0, decision.weights) == (stage, 0,"),
        ("if len(decisions) > 1 and self.decisions is not before", "if len(decisions) > 1"),
        ("several = [d for d in self.decisions if not d.ends", "several = [d for d in () if not d.ends"),
        ("return min(passed", "return max(passed"),
        ('"best_steps": self.best.steps if', '"best_steps": 1 if'),
        ('"passes" if passed == [1]', '"passes" if len(passed) == 1'),
    ),
    *of(
        "training/api",
        GRIDS,
        ('changes |= {"fine_times"', 'changes | {"fine_times"'),
        ("fewest = min(", "fewest = max("),
    ),
    *of(
        "training/run_folder",
        GRIDS,
        ("steps = steps_passed(self.folder, self.gate)", "pass"),
        ("for one in pipeline.at_each_count]", "for one in [pipeline]]"),
    ),
    *of("training/students", GRIDS, ('record["steps"] == steps)', 'record["steps"] != steps)')),
    *of("workflows/runs", GRIDS, ("if planned and (steps :=", "if False and (steps :=")),
    *of("workflows/compress", GRIDS, ('f"{stage.name}-{steps}" if', "stage.name if")),
    *of(
        "pipeline/base",
        GRIDS,
        ("if not self.fine_times:\n            return\n", "if True:\n            return\n"),
        ("(times[0], times[-1]) != ends or", ""),
        ("        return min(self.step_counts)\n\n    @property", "        return 1\n\n    @property"),
        ("grids = sorted(self.times, key=len, reverse=True)", "grids = self.times[::-1]"),
    ),
    *of(
        "training/sample_grid",
        GRIDS,
        ("sorted(student.step_counts, reverse=True)", "sorted(student.step_counts)"),
    ),
)  # fmt: skip
