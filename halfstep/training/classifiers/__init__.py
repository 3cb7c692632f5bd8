"""Training and distilling image classifiers."""
