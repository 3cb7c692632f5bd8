"""Images of a report."""
