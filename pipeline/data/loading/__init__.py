"""Shards to micro-batches in the global order."""
