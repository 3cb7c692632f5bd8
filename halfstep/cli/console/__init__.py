"""What commands print: progress, tables and lines."""
