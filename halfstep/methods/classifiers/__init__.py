"""Methods that train or distil image classifiers."""
