"""Does a test notice?  One-token mutants of the formulas, each of which some test must kill.

A new formula brings its mutants: add them to the file of its floor.  `python -m tests.mutants` runs them.
"""

from tests.mutants import (
    of_around,
    of_data,
    of_evaluation,
    of_losses,
    of_mathematics,
    of_methods,
    of_nets,
    of_report,
    of_samplers,
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
    of_evaluation,
    of_report,
    of_around,
)
MUTANTS = tuple(mutant for floor in FLOORS for mutant in floor.MUTANTS)
