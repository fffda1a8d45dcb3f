"""The painted faces of `synth`: known factors, a head in space, and what is drawn on it."""
