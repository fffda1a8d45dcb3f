"""Photographs as people have them: CelebA, any folder, a zip; annotations; splits."""
