"""Smaller networks: int8, pruning, and the transfer of weights."""
