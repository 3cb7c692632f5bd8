"""Models of others: published weights, and what they mean."""

from halfstep.hub.published import load_published, PUBLISHED, Published

__all__ = ["PUBLISHED", "Published", "load_published"]
