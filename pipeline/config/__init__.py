"""The typed configuration, what `--set` does to it, and its messages."""
