"""Latents: images encoded once, stored in shards and streamed."""
