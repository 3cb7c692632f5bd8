"""Builders that tests share: small networks, pipelines, data, runs and what is checked of them."""
