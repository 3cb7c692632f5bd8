"""Latents: images encoded once, kept in shards and streamed."""
