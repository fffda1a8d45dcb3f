"""Encoder and generator, discriminator, perceptual network."""
