"""Evidence whose students have chosen ratios to their teacher."""

from tests.support.evidence import evidence, rows_of

KEPT = {"c8": (1.02, 0.02), "c4": (1.03, 0.02), "c2": (1.21, 0.03), "c1": (1.4, 0.03)}


def with_rows(**by_calls):
    """Evidence whose students have these ratios: c8=(value, half width)."""
    content = evidence()
    content["run"]["gate"]["decisions"] = []
    for row in rows_of(content, "student"):
        value, half = by_calls[f"c{row['calls']}"]
        row["ratio"] = {"value": value, "low": value - half, "high": value + half}
    return content
