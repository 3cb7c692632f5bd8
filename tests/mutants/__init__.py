"""Does a test notice?  One-token mutants of the formulas, each of which some test must kill.

A new formula brings its mutants: add them to the file of its floor.  `python -m tests.mutants` runs them.
"""

from tests.mutants import (
    of_classifier_methods,
    of_cli,
    of_compare,
    of_data,
    of_evaluation,
    of_few_steps,
    of_ground,
    of_losses,
    of_mathematics,
    of_methods,
    of_nets,
    of_parallel_decoding,
    of_pipeline,
    of_recipes,
    of_report,
    of_samplers,
    of_smaller_students,
    of_training,
    of_verdicts,
    of_walks,
    of_watching,
    of_workflows,
)
from tests.mutants.mutant import Mutant, ROOT

__all__ = ["MUTANTS", "ROOT", "Mutant"]

FLOORS = (
    of_mathematics,
    of_losses,
    of_samplers,
    of_nets,
    of_data,
    of_methods,
    of_classifier_methods,
    of_smaller_students,
    of_parallel_decoding,
    of_walks,
    of_evaluation,
    of_few_steps,
    of_verdicts,
    of_compare,
    of_pipeline,
    of_training,
    of_watching,
    of_recipes,
    of_report,
    of_workflows,
    of_cli,
    of_ground,
)
MUTANTS = tuple(mutant for floor in FLOORS for mutant in floor.MUTANTS)
