"""Image classifiers: networks, checkpoints, preprocessing and ensembles."""
