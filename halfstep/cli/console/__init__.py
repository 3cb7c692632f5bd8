"""The output of commands: progress, tables and lines."""
