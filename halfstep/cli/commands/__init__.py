"""One file for each verb: parse its options, call its workflow, print the result."""
