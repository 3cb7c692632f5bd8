"""Trained models: published weights, and the small models bundled with halfstep."""

from halfstep.hub.bundled import bundled_cost, bundled_students, bundled_teacher
from halfstep.hub.uvit import load_published, PUBLISHED, Published

__all__ = [
    "PUBLISHED",
    "Published",
    "bundled_cost",
    "bundled_students",
    "bundled_teacher",
    "load_published",
]
