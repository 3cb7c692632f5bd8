"""Format numbers: significant decimals, a true minus, units."""

from collections.abc import Iterable, Sequence
from math import floor, log10
from statistics import median

from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.report_data import Measurement

ALMOST = 0.9995
"""From this value on, three digits round up to the next unit: to 1.00 ms, not 1,000 µs."""
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


def figure(value: float, places: int) -> str:
    """A number with so many decimals and a true minus, without "-0.00"."""
    text = f"{value:,.{places}f}"
    return text.lstrip("-") if not text.strip("-0.,") else text.replace("-", MINUS)


def places(values: Iterable[float], *, digits: int = 3) -> int:
    """The number of decimals, 0 to 6, that gives the median of these values so many digits."""
    sizes = [abs(value) for value in values if value]
    return min(max(digits - 1 - floor(log10(median(sizes))), 0), 6) if sizes else digits


def real_images(measure: Measurement) -> str:
    """Such as "10,000 real images that no network was trained on"."""
    apart = " that no network was trained on" if measure.held_out else ""
    return f"{measure.real:,} real images{apart}"


def interval(measured: Interval, decimals: int) -> str:
    """Such as "1.03 (1.01 to 1.06)"."""
    return f"{figure(measured.value, decimals)} ({ends(measured, decimals)})"


def ends(measured: Interval, decimals: int) -> str:
    """Such as "1.01 to 1.06"."""
    return f"{figure(measured.low, decimals)} to {figure(measured.high, decimals)}"


def ratio(measured: Interval, limit: float | None = None) -> str:
    """An interval with two decimals, or three if rounding would hide the side of the limit."""
    shown = {figure(x, 2) for x in (measured.value, measured.low, measured.high) if x != limit}
    return interval(measured, 3 if limit is not None and figure(limit, 2) in shown else 2)


def exact(limit: float) -> str:
    """A limit with all its decimals, at least two."""
    text = f"{limit:g}"
    return text if len(text.partition(".")[2]) > 2 else f"{limit:.2f}"


def percent(value: float) -> str:
    """A change, such as "+1.2 %"."""
    text = figure(100 * value, 1)
    return f"{'' if text.startswith(MINUS) or text == '0.0' else '+'}{text} %"


def listed(items: Sequence[str]) -> str:
    """Such as "8, 4 and 2"."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if items[1:] else "".join(items)


def rounded_up(count: int) -> int:
    """A number of samples with two digits, rounded up."""
    unit: int = 10 ** max(len(str(count)) - 2, 0)
    return -(-count // unit) * unit


def calls(n: int) -> str:
    return f"{n:,} network call{'' if n == 1 else 's'}"


def seconds(value: float | None) -> str:
    """A duration in a suitable unit."""
    if value is None:
        return DASH
    units = ((3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"))
    size, unit = next((pair for pair in units if value >= ALMOST * pair[0]), (1e-6, "µs"))
    return f"{_three(value / size)} {unit}"


def big(value: float | None, unit: str = "") -> str:
    """A count or a size, such as 1.15 M or 52.0 MB."""
    if value is None:
        return DASH
    prefixes = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    size, prefix = next((pair for pair in prefixes if abs(value) >= ALMOST * pair[0]), (1.0, ""))
    shown = _three(value / size) if prefix else f"{value:,.0f}"
    return f"{shown} {prefix}{unit}".rstrip()


def _three(value: float) -> str:
    """Three digits, or a whole number."""
    return f"{value:,.{2 if value < 10 * ALMOST else 1 if value < 100 * ALMOST else 0}f}"
