"""Pipeline: what a user holds in their hands."""

from halfstep.pipeline.description import schedule_from
from halfstep.pipeline.pipeline import from_description, Pipeline

__all__ = ["Pipeline", "from_description", "schedule_from"]
