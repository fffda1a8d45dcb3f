"""Painted faces with known factors, in CelebA's layout."""

PAINTED = "synth"
"""The value of `data.source` that stands for painted faces."""
