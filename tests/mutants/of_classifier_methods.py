"""Mutants of the methods of classifiers."""

from tests.mutants.mutant import of

MUTANTS = (
    *of(
        "methods/classifiers/supervised",
        "methods/classifiers/supervised",
        ("student(batch.x0)", "student(-batch.x0)"),
        (
            'smoothing=self.smoothing, reduction="none"',
            'smoothing=self.smoothing, reduction="batchmean"',
        ),
    ),
    *of(
        "methods/classifiers/weight_schedules",
        "methods/classifiers/terms",
        ("share = min(done / self.over, 1.0)", "share = min(done, 1.0)"),
        ("return Linear(0.0, weight, over)", "return Linear(weight, 0.0, over)"),
    ),
    *of(
        "methods/classifiers/recipes",
        "methods/classifiers/terms",
        ("soft_weight=1 - alpha, hard_weight=alpha", "soft_weight=alpha, hard_weight=1 - alpha"),
        ("weight=soft_weight / total", "weight=soft_weight"),
        ("LogitMatch(weight=1 - hard_share)", "LogitMatch(weight=hard_share)"),
    ),
    *of(
        "methods/classifiers/terms",
        "methods/classifiers/terms",
        ("torch.where(labels < 0, whole, values)", "torch.where(labels > 0, whole, values)"),
        ('losses.soft_targets if self.form == "kl"', 'losses.soft_targets if self.form != "kl"'),
        (
            "inter_weight=self.rows_weight, intra_weight=self.classes_weight",
            "inter_weight=self.classes_weight, intra_weight=self.rows_weight",
        ),
        ("teacher_share=self.teacher_share,", "teacher_share=1 - self.teacher_share,"),
        ('losses.logit_match if self.form == "mean"', 'losses.logit_match if self.form != "mean"'),
        ("smoothing=self.smoothing,", "smoothing=0.0,"),
        ("losses.standardised(student), losses", "student, losses"),
    ),
    *of(
        "methods/classifiers/knowledge",
        "methods/classifiers/terms models/classifiers/classifier_teachers",
        ("each = [weight_at(term.weight, self.done)", "each = [weight_at(term.weight, 0)"),
        ("return torch.stack(each).sum(0)", "return torch.stack(each).mean(0)"),
    ),
    *of(
        "methods/classifiers/feature_terms",
        "config/validate",
        ("isinstance(pair, list | tuple) and [type", "[type"),
        ("== [str, str]", "!= []"),
    ),
    *of(
        "methods/classifiers/recipes",
        "cli/knowledge_edges",
        ("if not is_valid(value, parameter.annotation):", "if False:"),
    ),
)
