"""The numbers of each table of the page, by the name of its files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from halfstep.evaluation.report_data import AnyReport, EncoderReport, GuidedRow, Report, Row
from halfstep.report.data_tables import Rows, spread, Value
from halfstep.report.page_tables import CostLine, CostTable, DriftTable, StudentLine
from halfstep.report.plots.sizes import Line


def report_tables(
    report: Report,
    *,
    comparison: Sequence[StudentLine],
    rows: Sequence[Row],
    sizes: Sequence[Line],
    compressed: Sequence[Row],
    drift: DriftTable | None,
    cost: CostTable | None,
) -> dict[str, Rows]:
    """The tables of a report whose students sample; those without a row are left out."""
    students, gate = report.students, report.run.gate
    guided = report.guided.rows if report.guided else ()
    remembered = [row for row in [report.teacher, *students] if row.memorisation]
    tables: dict[str, Rows] = {
        "comparison": [_compared(line) for line in comparison],
        "measures": [_measured(row) for row in rows],
        "sizes": [_sized(line) for line in sizes],
        "guidance": [_guided(row) for row in guided],
        "guidance-curves": [
            {
                "name": row.name,
                "guidance_scale": row.guidance_scale,
                "frechet_distance": row.data_distance,
                "inception_score": row.inception_score,
            }
            for row in guided
        ],
        "compressed": [_compressed(row) for row in compressed],
        "gate": [
            {"steps": d.steps, "stage": d.stage, **spread("ratio", d.ratio), "samples": d.samples}
            | {"decision": d.verdict}
            for d in (gate.decisions if gate else ())
        ],
        "fidelity": [_faithful(row) for row in students if row.fidelity or row.split],
        "drift": list(_drifted(students)) if drift else [],
        "memorisation": [_remembered(row) for row in remembered],
        "cost": [_cost(line) for line in (cost.students if cost else ())],
        "cost-of-baselines": [_cost(line) for line in (cost.baselines if cost else ())],
    }
    return {name: table for name, table in (tables | common_tables(report)).items() if table}


def encoder_tables(report: EncoderReport) -> dict[str, Rows]:
    """The tables of a report whose students encode."""
    rows = [
        {
            "name": row.name,
            "role": row.role,
            "calls": row.steps,
            **spread("rmse_full_steps", row.full),
            **spread("rmse_same_steps", row.same),
        }
        for row in report.reconstruction.rows
    ]
    return {"reconstruction": rows} | common_tables(report)


def common_tables(report: AnyReport) -> dict[str, Rows]:
    """The cost of training; empty if it is not known."""
    costs = report.run.cost
    pairs = (("teacher", costs.teacher), ("halvings", costs.halvings)) if costs else ()
    rows = [{"training_of": name, **asdict(cost)} for name, cost in pairs if cost]
    return {"training-cost": rows} if rows else {}


def named_values(values: Iterable[tuple[str, object]]) -> Rows:
    """A table of two columns, name and value."""
    return [{"name": name, "value": _plain(value)} for name, value in values if value is not None]


def _plain(value: object) -> Value:
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _compared(line: StudentLine) -> Mapping[str, Value]:
    best = line.baselines[0] if line.baselines else None
    return {
        "calls": line.row.calls,
        **spread("frechet_distance", line.distance),
        "baseline": "; ".join(row.name for row in line.baselines) or None,
        "baseline_calls": best.calls if best else None,
        "baseline_frechet_distance": best.distances.frechet_distance.value if best else None,
        **spread("ratio_to_teacher", line.ratio),
        "difference": line.difference,
        "ratio_less_floor": line.less_floor,
        "good_enough": line.good,
        "better_than_baseline": line.better,
        **spread("ratio_to_baseline", line.baseline_ratio),
    }


def _measured(row: Row) -> Mapping[str, Value]:
    distances = row.distances
    values = {"name": row.name, "role": row.role, "sampler": row.sampler}
    return {
        **values,
        "steps": row.steps,
        "calls": row.calls,
        **spread("frechet_distance", distances.frechet_distance),
        **spread("frechet_unbiased", distances.frechet_unbiased),
        **spread("kernel_distance", distances.kernel_distance),
        **spread("inception_score", distances.inception_score),
        **spread("precision", distances.precision),
        **spread("recall", distances.recall),
        **spread("ratio_to_teacher", row.ratio),
    }


def _sized(line: Line) -> Mapping[str, Value]:
    return {
        "name": line.name,
        "network": line.network,
        "parameters": line.parameters,
        "calls": line.calls,
        "multiply_adds": line.multiply_adds,
        "seconds": line.seconds,
        **spread("frechet_distance", line.frechet),
        "front": line.front,
    }


def _guided(row: GuidedRow) -> Mapping[str, Value]:
    return {
        "guidance_scale": row.guidance_scale,
        "name": row.name,
        "calls": row.calls,
        **spread("floor_ratio", row.floor_ratio),
        **spread("distance_to_guided_teacher", row.distance),
        **spread("rmse", row.rmse),
        "frechet_distance_to_data": row.data_distance,
        "inception_score": row.inception_score,
    }


def _compressed(row: Row) -> Mapping[str, Value]:
    compressed = row.compressed
    assert compressed is not None
    return {
        "student": compressed.student,
        "kind": compressed.kind,
        **spread("frechet_distance", row.distances.frechet_distance),
        **spread("ratio_to_student", compressed.ratio),
        **spread("rmse_to_student", compressed.rmse),
        "bytes": compressed.bytes,
        "zeros": compressed.zeros,
        **_seconds(row),
    }


def _faithful(row: Row) -> Mapping[str, Value]:
    errors, split = row.fidelity, row.split
    return {
        "calls": row.calls,
        **spread("rmse", errors.rmse if errors else None),
        **spread("psnr", errors.psnr if errors else None),
        **spread("feature_rmse", errors.feature_rmse if errors else None),
        **spread("rmse_of_grid", split.grid if split else None),
        **spread("rmse_of_learning", split.learning if split else None),
    }


def _drifted(students: Sequence[Row]) -> Iterable[Mapping[str, Value]]:
    for row in students:
        for drift in row.drift or ():
            change = spread("change", drift.change)
            yield {"calls": row.calls, "measure": drift.measure, "limit": drift.limit, **change}


def _remembered(row: Row) -> Mapping[str, Value]:
    found = row.memorisation
    assert found is not None
    return {
        "name": row.name,
        **spread("to_training", found.train),
        **spread("of_held_out", found.held_out),
        **spread("ratio", found.ratio),
        **spread("copies", found.copies),
    }


def _cost(line: CostLine) -> Mapping[str, Value]:
    row, cost = line.row, line.row.cost
    assert cost is not None
    return {
        "name": row.name,
        "sampler": row.sampler,
        "calls": cost.calls,
        **_seconds(row),
        "times_faster": line.faster,
        "peak_bytes": cost.peak_bytes,
        "parameters": cost.parameters,
        "multiply_adds": cost.multiply_adds,
    }


def _seconds(row: Row) -> dict[str, Value]:
    """Seconds a sample in each batch that was timed."""
    timings = row.cost.seconds_per_sample if row.cost else {}
    return {f"seconds_per_sample_in_batch_of_{batch}": timings[batch] for batch in sorted(timings)}
