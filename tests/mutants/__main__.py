"""Run the mutants.

    python -m tests.mutants [--only NAME] [--list]

First the tests must pass without a mutant; then each mutant's tests must fail with it.  Exits with 1 if any
survives, or if its text is no longer there.
"""

import argparse
import sys

from tests.mutants import MUTANTS
from tests.mutants.running import run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="mutants whose name has this")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if options.only in mutant.name]
    if not chosen:
        print(f"no mutant has '{options.only}' in its name; --list prints them all")
        return 1
    if options.list:
        print(*(mutant.name for mutant in chosen), sep="\n")
        return 0
    return run(chosen)


if __name__ == "__main__":
    sys.exit(main())
