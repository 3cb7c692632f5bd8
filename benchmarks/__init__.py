"""Measurements of halfstep: `python -m benchmarks.step`."""
