"""Shards on disk: format, writing, verifying, staging, array jobs, indexes of others' tars."""
