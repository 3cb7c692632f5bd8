"""The features that images are compared through."""
