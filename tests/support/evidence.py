"""A report as `halfstep evaluate` would measure it on digits: a stand-in to try the page on."""

import copy

import numpy as np

from halfstep.data import load
from halfstep.evaluation.report_files import parse_report, read_report
from halfstep.evaluation.report_rows import Comparison
from halfstep.report.words.headline import summarised
from halfstep.schema import plain

FULL = 64
COUNTS = (8, 4, 2, 1)
# Fréchet distance at 8, 4, 2 and 1 calls: of presets/digits-progressive.toml, and of its baselines
STUDENT = (0.178, 0.180, 0.209, 0.211)
BASELINES = {
    "ddim": ((8, 0.232), (4, 0.410), (2, 1.037), (1, 3.806)),
    "dpmpp-2m": ((8, 0.176), (4, 0.360), (2, 1.037), (1, 3.806)),
    "heun": ((7, 0.214), (3, 0.733), (1, 3.806)),
}
TEACHER = 0.173


def measured(value, width=0.03):
    """An interval of that relative half width."""
    return {"value": value, "low": value - abs(value) * width, "high": value + abs(value) * width}


def evidence():
    """A table as RUN/report.json has it; every call makes a new one."""
    found = {
        "format": 3,
        "headline": "",
        "verdict": "",
        "verdicts": [],
        "provenance": {
            "command": "halfstep distill progressive --preset digits-progressive --tolerance 1.10",
            "halfstep": "0.2.0",
            "torch": "2.13.0",
            "commit": "3978baf0c1d2",
            "machine": "2 CPU cores",
            "date": "2026-11-30",
        },
        "run": {
            "folder": "demo",
            "config": {
                "teacher": "digits-teacher",
                "method": {"start": 32, "stop": 1, "updates": [250, 300, 350, 400, 400]},
                "training": {"rate": 1e-3, "betas": [0.9, 0.99], "ema": 0.98, "seed": 0},
            },
            "gate": {
                "tolerance": 1.1,
                "until": None,
                "about": {
                    "features": "digits",
                    "digest": "5" * 64,
                    "preprocessing": "as it lies, [-1, 1]",
                    "data": "7" * 64,
                    "samples": 2000,
                    "full": FULL,
                    "seed": 0,
                },
                "stopped": "At 2 steps the distance is 1.21 (1.17 to 1.25) times the teacher's, surely "
                "more than 1.10.",
                "best": "0004-steps",
                "best_steps": 4,
                "decisions": [
                    _decision(16, 1.01, 2000, "passed"),
                    _decision(8, 1.03, 2000, "passed"),
                    _decision(4, 1.04, 2000, "passed"),
                    _decision(2, 1.21, 4000, "broken"),
                ],
            },
            "cost": {
                "teacher": {"seconds": 160.2, "forwards": 1_152_000, "updates": 3000},
                "halvings": {"seconds": 141.7, "forwards": 1_088_000, "updates": 1700},
            },
        },
        "measure": {
            "features": "digits",
            "digest": "5" * 64,
            "preprocessing": "as it lies, [-1, 1]",
            "data": "7" * 64,
            "samples": 2000,
            "real": 1797,
            "real_few": 1797,
            "seed": 0,
            "guidance_scale": 1.0,
            "floor": 0.096,
            "left_out": [],
            "floor_note": "",
            "machine": "2 CPU cores",
            "floor_at_2000": 0.096,
            "held_out": False,
        },
        "rows": _rows(),
        "guided": None,
        "training": _training(),
    }
    return found


def typed(found, shown=None):
    """The report of such a table, with these pictures; its verdicts, where the table has none."""
    report = parse_report(found, "a report", shown or {})
    return report if report.headline else summarised(report)


def read_back(folder):
    """The table and the pictures of a report that was written there."""
    report = read_report(folder)
    return plain(report), report.pictures


def gather(*arguments, **options):
    """A comparison, measured, as tables, and its pictures."""
    parts = Comparison(*arguments).measure(**options)
    rows, guided = [plain(row) for row in parts.rows], plain(parts.guided)
    return {"measure": plain(parts.measure), "rows": rows, "guided": guided}, parts.pictures


def rows_of(found, role):
    """The rows of a role, most network calls first."""
    return sorted(
        (row for row in found["rows"] if row["role"] == role), key=lambda row: -row["calls"]
    )


def digits_of(count):
    """The first digits, float [count, 8, 8, 1] from 0 to 255."""
    return load("digits").values[:count].permute(0, 2, 3, 1).double().numpy()


def pictures():
    """The arrays of RUN/report.npz: 8 x 8 grey digits, noisier the fewer the steps."""
    rng = np.random.default_rng(0)
    digits = digits_of(12)
    labels = ["teacher, 64 steps", "8 steps", "4 steps", "2 steps", "1 step"]
    stack = np.stack([digits + k * 6 * rng.normal(size=digits.shape) for k in range(5)])
    worst = np.stack([digits[:6], digits[6:]], axis=1)
    return {
        "grid": stack.clip(0, 255).astype(np.uint8),
        "grid_labels": np.array(labels),
        "grid_classes": np.array([str(digit) for digit in load("digits").labels[:12].tolist()]),
        "worst": worst.clip(0, 255).astype(np.uint8),
        "worst_labels": np.array([f"seed {k}, error {0.31 - 0.02 * k:.2f}" for k in range(6)]),
    }


def _decision(steps, ratio, samples, verdict):
    stage = f"{steps:04d}-steps"
    return {
        "stage": stage,
        "steps": steps,
        "ratio": measured(ratio, 0.025),
        "samples": samples,
        "verdict": verdict,
        "weights": "9" * 64,
    }


def _rows():
    rows = [_row("teacher", f"teacher, {FULL} steps", "ddim", FULL, FULL, TEACHER)]
    for sampler, found in BASELINES.items():
        for calls, value in found:
            steps = (calls + 1) // 2 if sampler == "heun" else calls
            rows.append(
                _row("baseline", f"teacher, {sampler}, {steps} steps", sampler, steps, calls, value)
            )
    for calls, value in zip(COUNTS, STUDENT, strict=True):
        name = f"student, {calls} step{'s' if calls > 1 else ''}"
        rows.append(_student(_row("student", name, "ddim", calls, calls, value)))
    return rows


def _row(role, name, sampler, steps, calls, value):
    return {
        "role": role,
        "name": name,
        "sampler": sampler,
        "steps": steps,
        "calls": calls,
        "distances": {
            "frechet_distance": measured(value, 0.035),
            "frechet_unbiased": None,
            "kernel_distance": measured(value / 240, 0.09),
            "inception_score": measured(9.4 - value, 0.008),
            "precision": measured(0.93 - value / 20, 0.02),
            "recall": measured(0.9 - value / 8, 0.03),
        },
        "ratio": None if role == "teacher" else measured(value / TEACHER, 0.022),
        "fidelity": None,
        "split": None,
        "memorisation": None if role == "baseline" else _memorisation(value),
        "drift": None,
        "cost": {
            "calls": calls,
            "seconds_per_sample": {"1": 2.1e-3 * calls, "64": 2.7e-4 * calls},
            "peak_bytes": 58_000_000,
            "parameters": 331_024,
            "multiply_adds": 6_120_000 * calls,
        },
        "compressed": None,
        "network": None,
        "student_ratio": None,
        "baseline": None,
    }


def _student(row):
    calls = row["calls"]
    rmse = 0.053 / calls**0.5
    row["fidelity"] = {
        "rmse": measured(rmse),
        "psnr": measured(20 * np.log10(2 / rmse).item(), 0.01),
        "feature_rmse": measured(0.6 * rmse),
    }
    row["split"] = {"grid": measured(0.11 / calls), "learning": measured(0.012 / calls**0.3)}
    row["drift"] = [
        _drift("brightness", 0.002 / calls),
        _drift("contrast", -0.012 / calls),
        _drift("fine detail", 0.09 / calls**2),
    ]
    return row


def _drift(measure, change):
    alarm = f"{measure} {change:+.0%}, outside ±3 %".replace("%,", " %,") if change > 0.03 else None
    width = 0.004
    interval = {"value": change, "low": change - width, "high": change + width}
    return {"measure": measure, "change": interval, "limit": 0.03, "alarm": alarm}


def _memorisation(value):
    train = 1.14 + value / 3
    return {
        "train": measured(train),
        "held_out": measured(1.19),
        "ratio": measured(train / 1.19),
        "copies": {"value": 0.002, "low": -0.001, "high": 0.005},
        "flag": None,
    }


def _training():
    rng = np.random.default_rng(1)
    lines = []
    for steps, updates in zip((16, 8, 4, 2, 1), (250, 300, 350, 400, 400), strict=True):
        for update in range(10, updates + 1, 10):
            level = 0.02 / steps**0.7 * (0.06 + np.exp(-update / 60)) * np.exp(0.2 * rng.normal())
            rate = 1e-3 * (1 - update / updates)
            lines.append(
                {
                    "stage": f"{steps:04d}-steps",
                    "update": update,
                    "loss": float(level),
                    "rate": rate,
                }
            )
    return lines


SCALES, FINE = (1.0, 1.3, 2.0, 3.0), (1.0, 1.15, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0)
FLOOR = (0.060, 0.048, 0.030, 0.025)  # of the guided teacher at these scales
TIMES = {8: 1.18, 4: 1.45, 2: 2.3, 1: 4.1}


def guided():
    """Evidence of a run whose student takes the guidance scale as an input."""
    rows = []
    for scale, floor in zip(SCALES, FLOOR, strict=True):
        data, score = 0.15 + 0.1 * scale, 8.9 + 0.25 * scale
        calls = FULL if scale == 1 else 2 * FULL
        rows.append(_guided_row(scale, FULL, calls, floor, None, data, score))
        for steps, times in TIMES.items():
            far = times * (1 + 0.05 * scale)
            rows.append(
                _guided_row(scale, steps, steps, floor, far, data + 0.02 * far, score - 0.05 * far)
            )
    reference = {"samples": 10_000, "steps": FULL, "sampler": "ddim", "seed": 1}
    return evidence() | {"guided": {"reference": reference, "scales": list(SCALES), "rows": rows}}


def _guided_row(scale, steps, calls, floor, times, to_data, score):
    role = "student" if times else "teacher"
    name = f"{steps} step{'s' if steps > 1 else ''}"
    return {
        "guidance_scale": scale,
        "role": role,
        "name": f"{role}, {name}",
        "sampler": "ddim",
        "steps": steps,
        "calls": calls,
        "distance": measured(floor * (times or 1)),
        "floor_ratio": measured(times) if times else None,
        "rmse": measured(0.03 * times) if times else None,
        "data_distance": to_data,
        "inception_score": score,
    }


def guided_pictures(seeds=10):
    """Those of `pictures`, and digits with more contrast the larger the scale."""
    rng = np.random.default_rng(0)
    digits = digits_of(seeds) - 90
    noise = rng.normal(size=digits.shape)
    stack = [[digits * s + 90 + 8 * k * noise for k in range(1 + len(TIMES))] for s in FINE]
    return pictures() | {
        "guided": np.array(stack).clip(0, 255).astype(np.uint8),
        "guided_scales": np.array(FINE),
        "guided_labels": np.array(pictures()["grid_labels"]),
    }


def full_report():
    """The table of a guided run, with a row of every kind."""
    content = guided() | {"headline": "all", "verdict": "all was kept"}
    last = content["rows"][-1]
    small = {"kind": "int8", "student": last["name"], "bytes": 9, "zeros": 0.5} | dict.fromkeys(
        ("rmse", "ratio"), measured(1.1)
    )
    last["compressed"] = small | {"kind": "as trained", "rmse": None, "ratio": None}
    other = {"role": "other", "network": "n", "student_ratio": measured(0.9)}
    content["rows"] += [
        copy.deepcopy(last) | {"role": "compressed", "compressed": small},
        copy.deepcopy(last) | {"compressed": None} | other,
    ]
    return content


def encoder_report():
    """The table of a run of encoders."""
    content = {name: evidence()[name] for name in ("format", "provenance", "run", "training")}
    row = {"name": "student", "role": "student", "steps": 3, "full": measured(0.1), "same": None}
    reconstruction = {"data": "7" * 64, "images": 3, "held_out": False, "full": 64, "rows": [row]}
    said = {"headline": "back", "verdict": "images come back"}
    return content | said | {"reconstruction": reconstruction}
