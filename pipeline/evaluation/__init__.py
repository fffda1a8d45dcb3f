"""How good a bundle is: metrics, the effect matrix, figures."""
