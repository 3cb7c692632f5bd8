"""The version of halfstep."""

__version__ = "0.2.0"
