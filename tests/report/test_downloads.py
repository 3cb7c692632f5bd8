"""Files to download: what they say is what the report says, and they work without anything else."""

import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from base64 import b64decode
from html import unescape
from io import StringIO

import numpy as np
import pytest

from halfstep.errors import ConfigError
from halfstep.report.citation import bibtex, escaped
from halfstep.report.data_tables import DataTable
from halfstep.report.downloads import file_stem
from halfstep.report.images.grids import difference_scale, ink, sheets
from halfstep.report.page import render
from halfstep.report.plots.svg import COLOURS
from tests.support.browser import needs_chromium, opened
from tests.support.evidence import encoder_report, evidence, pictures, rows_of, typed
from tests.support.pages import different

FOUND = different()


@pytest.fixture(scope="module")
def files():
    """The files of a page, by name."""
    return files_of(render(typed(FOUND)))


def files_of(text):
    links = re.findall(r'<a href="data:([^;,]+)[^,]*;base64,([^"]*)" download="([^"]*)"', text)
    assert len({name for _, _, name in links}) == len(links)
    return {name: b64decode(content).decode() for _, content, name in links}


def rows(text):
    return list(csv.DictReader(StringIO(text)))


def number(text):
    return float(text) if text else None


def same(row, name, interval):
    """Whether the columns of an interval are its numbers, to the last bit."""
    parts = [number(row[name]), number(row[f"{name}_low"]), number(row[f"{name}_high"])]
    return parts == ([interval[k] for k in ("value", "low", "high")] if interval else [None] * 3)


def test_every_table_and_figure_has_its_files(files):
    tables = {name for name in files if not name.startswith("demo-figure-")} - {"demo.bib"}
    names = {name.rpartition(".")[0] for name in tables}
    assert names == {
        f"demo-{name}"
        for name in (
            "comparison", "measures", "sizes", "guidance", "guidance-curves", "compressed", "gate",
            "fidelity", "drift", "memorisation", "training-cost", "cost", "cost-of-baselines",
            "versions", "configuration",
        )
    }  # fmt: skip
    assert tables == {f"{name}.{kind}" for name in names for kind in ("csv", "json")}
    figures = {name for name in files if name.startswith("demo-figure-")}
    assert figures == {
        f"demo-figure-{name}.{kind}"
        for name in ("quality", "ratios", "sizes", "seconds", "fidelity", "tradeoff", "training")
        for kind in ("svg", "csv", "json")
    }


def test_csv_and_json_say_the_same(files):
    for name in files:
        if name.endswith(".json"):
            table, records = rows(files[name[:-4] + "csv"]), json.loads(files[name])
            assert table and len(table) == len(records)
            for row, record in zip(table, records, strict=True):
                for key, cell in row.items():
                    value = record.get(key)
                    assert cell == ("" if value is None else str(value)), (name, key)


def test_measures_are_the_reports_numbers(files):
    table = rows(files["demo-measures.csv"])
    by_name = {row["name"]: row for row in FOUND["rows"] if row["role"] != "other"}
    assert [row["name"] for row in table] == list(dict.fromkeys(row["name"] for row in table))
    assert {row["name"] for row in table} == set(by_name)
    for row in table:
        expected = by_name[row["name"]]
        assert (row["steps"], row["calls"]) == (str(expected["steps"]), str(expected["calls"]))
        assert (row["role"], row["sampler"]) == (expected["role"], expected["sampler"])
        for name, interval in expected["distances"].items():
            assert same(row, name, interval), (row["name"], name)
        assert same(row, "ratio_to_teacher", expected["ratio"])


def test_students_are_the_reports_numbers(files):
    students = rows_of(FOUND, "student")
    for row, student in zip(rows(files["demo-fidelity.csv"]), students, strict=True):
        assert row["calls"] == str(student["calls"])
        for name in ("rmse", "psnr", "feature_rmse"):
            assert same(row, name, student["fidelity"][name])
        assert same(row, "rmse_of_grid", student["split"]["grid"])
        assert same(row, "rmse_of_learning", student["split"]["learning"])
    floor, [teacher] = FOUND["measure"]["floor"], rows_of(FOUND, "teacher")
    teacher = teacher["distances"]["frechet_distance"]["value"]
    for row, student in zip(rows(files["demo-comparison.csv"]), students, strict=True):
        distance = student["distances"]["frechet_distance"]
        assert same(row, "frechet_distance", distance)
        assert number(row["difference"]) == distance["value"] - teacher
        assert number(row["ratio_less_floor"]) == (distance["value"] - floor) / (teacher - floor)
        assert same(row, "ratio_to_baseline", (student["baseline"] or {}).get("ratio"))
    remembered = rows(files["demo-memorisation.csv"])
    for row, student in zip(remembered[1:], students, strict=True):
        found = student["memorisation"]
        assert same(row, "to_training", found["train"]) and same(row, "ratio", found["ratio"])
        assert same(row, "of_held_out", found["held_out"]) and same(row, "copies", found["copies"])
    drifts = [(student["calls"], drift) for student in students for drift in student["drift"]]
    for row, (calls, drift) in zip(rows(files["demo-drift.csv"]), drifts, strict=True):
        assert (row["calls"], row["measure"]) == (str(calls), drift["measure"])
        assert same(row, "change", drift["change"]) and number(row["limit"]) == drift["limit"]


def test_guidance_gate_sizes_and_costs_are_the_reports_numbers(files):
    for row, found in zip(rows(files["demo-guidance.csv"]), FOUND["guided"]["rows"], strict=True):
        assert row["name"] == found["name"] and row["calls"] == str(found["calls"])
        for name in ("floor_ratio", "rmse"):
            assert same(row, name, found[name])
        assert same(row, "distance_to_guided_teacher", found["distance"])
        assert number(row["frechet_distance_to_data"]) == found["data_distance"]
        assert number(row["inception_score"]) == found["inception_score"]
    decisions = FOUND["run"]["gate"]["decisions"]
    for row, decision in zip(rows(files["demo-gate.csv"]), decisions, strict=True):
        assert same(row, "ratio", decision["ratio"])
        assert (row["samples"], row["decision"]) == (str(decision["samples"]), decision["verdict"])
    by_name = {row["name"]: row for row in FOUND["rows"]}
    for row in rows(files["demo-sizes.csv"]):
        cost = by_name[row["name"]]["cost"]
        assert number(row["parameters"]) == cost["parameters"]
        assert number(row["multiply_adds"]) == cost["multiply_adds"]
        assert number(row["seconds"]) == cost["seconds_per_sample"]["64"]
    full = by_name["teacher, 64 steps"]["cost"]["seconds_per_sample"]["64"]
    for table in ("cost", "cost-of-baselines"):
        for row in rows(files[f"demo-{table}.csv"]):
            cost = by_name[row["name"]]["cost"]
            for batch, taken in cost["seconds_per_sample"].items():
                assert number(row[f"seconds_per_sample_in_batch_of_{batch}"]) == taken
            assert number(row["times_faster"]) == full / cost["seconds_per_sample"]["64"]
            assert number(row["peak_bytes"]) == cost["peak_bytes"]
    for row, cost in zip(
        rows(files["demo-training-cost.csv"]), FOUND["run"]["cost"].values(), strict=True
    ):
        assert {name: number(row[name]) for name in cost} == cost
    variants = [row for row in FOUND["rows"] if row["compressed"]]
    for row in rows(files["demo-compressed.csv"]):
        [found] = [
            v for v in variants
            if (v["compressed"]["kind"], v["compressed"]["student"]) == (row["kind"], row["student"])
        ]  # fmt: skip
        assert same(row, "ratio_to_student", found["compressed"]["ratio"])
        assert same(row, "rmse_to_student", found["compressed"]["rmse"])
        assert number(row["zeros"]) == found["compressed"]["zeros"]


def test_figures_are_the_points_that_they_draw(files):
    students = sorted(rows_of(FOUND, "student"), key=lambda row: row["calls"])
    table = rows(files["demo-figure-quality.csv"])
    drawn = [row for row in table if row["series"] == "student"]
    for row, student in zip(drawn, students, strict=True):
        assert number(row["calls"]) == student["calls"]
        assert same(row, "frechet_distance", student["distances"]["frechet_distance"])
    assert [row["series"] for row in table if not row["calls"]] == [
        "teacher, 192 network calls", "sampling floor",
    ]  # fmt: skip
    errors = [
        row for row in rows(files["demo-figure-fidelity.csv"]) if "full steps" in row["series"]
    ]
    for row, student in zip(errors, students, strict=True):
        assert same(row, "rmse", student["fidelity"]["rmse"])
    training = rows(files["demo-figure-training.csv"])
    for row, update in zip(training, FOUND["training"], strict=True):
        assert row["stage"] == update["stage"] and number(row["update"]) == update["update"]
        assert number(row["loss"]) == number(row["low"]) == update["loss"]
        assert number(row["rate"]) == update["rate"]


def test_an_encoders_table():
    text = render(typed(encoder_report()))
    [row] = rows(files_of(text)["demo-reconstruction.csv"])
    assert row["name"] == "student" and number(row["rmse_full_steps"]) == 0.1
    assert row["rmse_same_steps"] == ""


def test_an_svg_stands_alone_in_light_colours(files):
    for name, text in files.items():
        if name.endswith(".svg"):
            root = ElementTree.fromstring(text)
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            width, height = float(root.get("width")), float(root.get("height"))
            assert root.get("viewBox").split()[2:] == [root.get("width"), root.get("height")]
            assert 700 <= width <= 740 and 100 < height < 400
            assert "var(" not in text and "class=" not in text
            assert not any(dark in text for _, dark in COLOURS.values())
            ids = re.findall(r' id="([^"]*)"', text)
            assert set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", text)) <= set(ids)
            assert root[0].tag.endswith("title") and len(root[0].text) > 60
            assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)


@needs_chromium
def test_a_browser_draws_a_downloaded_svg(files, tmp_path):
    (tmp_path / "figure.svg").write_text(files["demo-figure-quality.svg"], encoding="utf-8")
    (tmp_path / "frame.html").write_text(
        """<img id=i src=figure.svg><script>onload = () => document.title =
        [i.naturalWidth, i.naturalHeight].join(" ")</script>"""
    )
    dom = opened(tmp_path / "frame.html", tmp_path / "profile")
    assert re.search("<title>(.*)</title>", dom)[1] == "720 360"


def test_cells_with_commas_quotes_and_nothing_come_back():
    table = DataTable("t", [{"a": 'x, "y"\nz', "b": None}, {"b": 0.1 + 0.2, "c": True}])
    assert rows(table.csv) == [
        {"a": 'x, "y"\nz', "b": "", "c": ""}, {"a": "", "b": "0.30000000000000004", "c": "True"},
    ]  # fmt: skip
    assert json.loads(table.json) == list(table.rows)


@pytest.mark.parametrize(
    ("run", "stem"),
    [
        ("demo", "demo"),
        ("a b/c", "a-b-c"),
        ("..", "run"),
        ("日本 x", "日本-x"),
        ("x.y_z-1", "x.y_z-1"),
    ],
)
def test_file_names_are_names_of_files(run, stem):
    assert file_stem(run) == stem


# ---- the citation


def test_bibtex_names_version_date_and_run():
    content = evidence()
    content["run"]["folder"] = "50%_a&b"
    text = render(typed(content))
    assert "version = {0.2.0}" in text and "year    = {2026}" in text
    bib = files_of(text)["50-_a-b.bib"]
    assert r"note    = {Report of the run 50\%\_a\&b, 2026-11-30, commit 3978baf0c1d2}" in bib
    assert bib.count("@") == 2 and bib.count("{") == bib.count("}")
    assert bib == unescape(re.search(r"<pre[^>]*><code>(.*?)</code>", text, re.S)[1])
    assert bibtex(typed(different())).count("@") == 3  # with the paper of guidance
    content["provenance"] |= dict.fromkeys(("date", "commit", "halfstep"))
    assert "version" not in bibtex(typed(content)) and "None" not in bibtex(typed(content))


def test_tex_is_escaped():
    assert escaped(r"a\b~c^d_{e}#$%&") == (
        r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d\_\{e\}\#\$\%\&"
    )


def test_the_date_and_the_command_are_on_the_page():
    text = render(typed(evidence()))
    assert '<time datetime="2026-11-30">2026-11-30</time>' in text
    assert "halfstep distill progressive --preset digits-progressive" in text


# ---- difference images


@pytest.mark.parametrize(
    ("sizes", "scale"), [([0.0], 0.01), ([0.01] * 100, 0.01), ([0.011] * 100, 0.02), ([3.0], 2.0)]
)
def test_the_scale_holds_all_but_one_in_a_hundred(sizes, scale):
    assert difference_scale(np.array(sizes, np.float32)) == scale


def test_one_in_a_hundred_may_be_beyond_the_scale():
    sizes = np.zeros(200, np.float32)
    sizes[:2] = -0.3
    assert difference_scale(sizes) == 0.01
    sizes[2] = -0.3
    assert difference_scale(sizes) == 0.5


def test_ink_is_grey_for_none_and_white_for_brighter():
    levels = ink(np.array([0.0, 0.1, -0.1, 0.05, 9.0, -9.0], np.float32), 0.1)
    assert levels.tolist() == [128, 255, 0, 191, 255, 0]


def test_differences_are_of_the_student_less_the_teacher():
    shown = sheets(pictures())
    assert [strip.label for strip in shown.differences.strips] == pictures()["grid_labels"][
        1:
    ].tolist()
    assert shown.grid.heads == [str(k) for k in pictures()["grid_classes"]]
    assert shown.worst.columns == 3 and shown.worst.scale > shown.differences.scale
    alone = pictures()
    alone |= {"grid": alone["grid"][:1], "grid_labels": alone["grid_labels"][:1]}
    assert sheets(alone).differences is None


def test_a_class_for_each_column():
    with pytest.raises(ConfigError, match="grid_classes"):
        sheets(pictures() | {"grid_classes": np.array(["a"])})


# ---- enlarged pictures


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_a_picture_is_enlarged_by_pointer_and_by_key_and_put_back(width, tmp_path):
    (tmp_path / "report.html").write_text(render(typed(evidence(), pictures())), encoding="utf-8")
    (tmp_path / "frame.html").write_text(
        f"""<iframe id=f src=report.html width={width} height=800 style="border:0"></iframe><script>
        onload = () => {{ const d = f.contentDocument, seen = [], see = id => seen.push(Math.round(
            d.querySelector(`label[for=${{id}}] img`).getBoundingClientRect().width));
        const a = d.getElementById("grid-1-3"), b = d.getElementById("differences-0-2");
        see("grid-1-3"); d.querySelector("label[for=grid-1-3]").click(); see("grid-1-3");
        const close = a.parentElement.querySelector(".close"); seen.push(close.textContent);
        close.click(); see("grid-1-3");
        b.focus(); b.checked = true; see("differences-0-2");
        document.title = seen.join("|") }}</script>"""
    )
    dom = opened(tmp_path / "frame.html", tmp_path / "profile")
    small, large, words, again, other = re.search("<title>(.*)</title>", dom)[1].split("|")
    assert int(small) == int(again) < 60 and int(large) > 350 and int(other) > 350
    assert words == "8 steps, seed 3, 3"
