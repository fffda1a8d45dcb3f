"""Images from their source to shards, and from shards to batches."""
