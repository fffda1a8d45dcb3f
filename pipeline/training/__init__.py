"""The stages, the loop that runs them, and what they stand on."""
