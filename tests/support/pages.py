"""What a page says: its tables by header, and the numbers in a cell as numbers again."""

import random
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

from halfstep.report.words.numbers import MINUS
from tests.support.evidence import guided

UNITS = {"µs": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "%": 0.01}
UNITS |= {f"{p}{u}": 1000**k for k, p in enumerate(("", "k", "M", "G", "T")) for u in ("", "B")}
NUMBER = re.compile(
    rf"(?<![\w.])([+{MINUS}]?[\d,]*\d(?:\.\d+)?)(?: ?(µs|ms|min|[sh%]|[kMGT]?B|[kMGT])(?!\w))?"
)


@dataclass
class Table:
    """The header's cells, and every row's; `groups` are what stands over a row alone."""

    label: str
    head: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)

    def __getitem__(self, header):
        """That column, by the name of each row's first cell (with its group, where it has one)."""
        assert self.head.count(header) == 1, self.head
        names = [
            f"{group} {row[0]}".strip() for group, row in zip(self.groups, self.rows, strict=True)
        ]
        assert len(set(names)) == len(names)
        at = self.head.index(header)
        return {name: row[at] for name, row in zip(names, self.rows, strict=True)}


class Tables(HTMLParser):
    """All tables of a page that have a header, by the label that a screen reader says."""

    def __init__(self, text):
        super().__init__()
        self.found, self.label, self.table = {}, "", None
        self.cells, self.cell, self.group, self.inside = [], None, "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.label = attrs.get("aria-label", self.label) if tag in ("div", "table") else self.label
        if tag == "table":
            self.table, self.group = Table(self.label), ""
        elif tag in ("thead", "tbody"):
            self.inside = tag
        elif tag == "tr":
            self.cells = []
        elif tag in ("th", "td") and self.table is not None:
            self.cell, self.alone = [], attrs.get("scope") == "rowgroup"
        elif self.cell is not None:
            self.cell.append(" ")

    def handle_data(self, data):
        if self.cell is not None:
            self.cell.append(data)

    def handle_endtag(self, tag):
        if tag in ("th", "td") and self.cell is not None:
            self.cells.append(re.sub(r"\s+", " ", "".join(self.cell)).strip())
            self.cell = None
        elif tag == "tr" and self.inside == "thead":
            self.table.head = self.cells
        elif tag == "tr" and self.alone:
            [self.group] = self.cells
        elif tag == "tr":
            self.table.rows.append(self.cells)
            self.table.groups.append(self.group)
        elif tag == "table":
            if self.table.head:
                assert self.table.label not in self.found
                assert {len(row) for row in self.table.rows} == {len(self.table.head)}
                self.found[self.table.label] = self.table
            self.table = None


def tables(text):
    return Tables(text).found


def says(cell, *numbers):
    """Whether a cell has these numbers in this order and no others, each within half of its last digit."""
    shown = NUMBER.findall(cell)
    if len(shown) != len(numbers):
        return False
    for (text, unit), number in zip(shown, numbers, strict=True):
        value = float(text.replace(MINUS, "-").replace(",", "")) * UNITS[unit]
        last = 10.0 ** -len(text.partition(".")[2]) * UNITS[unit]
        if abs(value - number) > last * 0.500001:
            return False
    return True


def spread(interval):
    """(value, low, high) as a cell has them; of None, none."""
    return (interval["value"], interval["low"], interval["high"]) if interval else ()


class Pool:
    """Hundredths from 1 to 10, each once: some power of ten of one is shown in full."""

    def __init__(self):
        self.left = list(range(100, 1000))
        random.Random(4).shuffle(self.left)

    def one(self, unit=1.0):
        return self.left.pop() / 100 * unit

    def three(self):
        low, value, high = sorted(self.one() for _ in range(3))
        return {"value": value, "low": low, "high": high}

    def of(self, *names):
        return {name: self.three() for name in names}


def different():
    """Evidence of every kind of row, in which no two measured numbers are the same."""
    found, pool = guided(), Pool()
    rows, run = found["rows"], found["run"]
    last = rows[-1]
    for name in ("other, 8 steps", "other, 4 steps"):
        rows.append({**last, "role": "other", "name": name, "network": "other"})
    for kind in ("int8", "pruned"):
        rows.append({**last, "role": "compressed", "name": f"student, {kind}"})
    for k, row in enumerate(rows):
        _fill(row, k, pool)
    for kind, row, own in (
        ("as trained", rows[-6], rows[-6]),
        ("pruned", rows[-1], rows[-6]),
        ("as trained", rows[-5], rows[-5]),
        ("int8", rows[-2], rows[-5]),
    ):
        said = {"kind": kind, "student": own["name"], "bytes": round(pool.one(1e6))}
        said["zeros"] = pool.one(0.1)
        row["compressed"] = said | pool.of("rmse", "ratio")
    for k, row in enumerate(found["guided"]["rows"]):
        row |= {"data_distance": pool.one(), "inception_score": pool.one(), "calls": 1000 + k}
        row |= pool.of(*(name for name in ("distance", "floor_ratio", "rmse") if row[name]))
    for k, decision in enumerate(run["gate"]["decisions"]):
        decision |= {"ratio": pool.three(), "samples": 1500 + 1000 * k}
    for k, cost in enumerate(run["cost"].values()):
        cost |= {"seconds": pool.one(60), "forwards": 11_111 * (k + 1), "updates": 7_777 * (k + 2)}
    found["measure"]["floor"] = 0.5
    students = [row for row in rows if row["role"] == "student"]
    ends = ((0.7, 0.8), (0.7, 9.999), (1.2, 1.3))  # surely better, nobody can tell, surely not
    for row, (low, high) in zip(students, ends, strict=False):
        fitting = [r for r in rows if r["role"] == "baseline" and r["calls"] <= row["calls"]]
        best = min(fitting, key=lambda r: r["distances"]["frechet_distance"]["value"])
        ratio = pool.three() | {"low": low, "high": high}
        row["baseline"] = {"names": [best["name"]], "ratio": ratio}
    return found


def _fill(row, k, pool):
    """What is measured of every row, and of the kind that it is."""
    role = row["role"]
    row["distances"] = row["distances"] | pool.of(*(k for k, v in row["distances"].items() if v))
    row["ratio"] = pool.three() if role != "teacher" else None
    row["calls"] = 3 * row["calls"] + k % 3
    row["cost"] = {
        "calls": row["calls"],
        "seconds_per_sample": {"1": pool.one(1e-3), "64": pool.one(1e-6)},
        "peak_bytes": round(pool.one(1e6)),
        "parameters": round(pool.one(1e6)),
        "multiply_adds": round(pool.one(1e9)),
    }
    row |= {"fidelity": None, "split": None, "memorisation": None}
    if role in ("teacher", "student"):
        row["memorisation"] = pool.of("train", "held_out", "ratio", "copies") | {"flag": None}
    if role == "student":
        row["fidelity"] = pool.of("rmse", "psnr", "feature_rmse")
        row["split"] = pool.of("grid", "learning")
        for measure in row["drift"]:
            measure["change"] = pool.three()
    else:
        row["drift"] = None


VOID = {"meta", "link", "img", "br", "input", "col"}


class Page(HTMLParser):
    """Tags with their attributes, text outside of style, and whether every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def ids(self):
        return [attrs["id"] for _, attrs in self.tags if "id" in attrs]
