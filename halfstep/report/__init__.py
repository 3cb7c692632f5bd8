"""Pictures that say what was kept."""
