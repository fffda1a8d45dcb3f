"""A trained model in use: bundles, fusion, pictures, landmarks."""
