"""Walks of a teacher on the disk: its trajectories from noise to data, walked once and read by many runs."""
