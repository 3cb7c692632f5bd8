"""Metrics, each with an interval."""
