"""Painted faces with known factors, in CelebA's layout."""
