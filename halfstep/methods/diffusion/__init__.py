"""Methods that train or distil diffusion models."""
