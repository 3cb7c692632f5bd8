"""Checks before a run: its data and its teacher."""
