"""Options: their declared types and ranges, TOML files and presets."""
