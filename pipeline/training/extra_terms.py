"""Terms of the fusion step that the paper does not have (docs/method.md): `ssim`, `separation`, `path`."""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.config.schema import LAYERS, Config
from pipeline.measures.distances import perceptual_point, represented, represented_distances
from pipeline.models import extra_losses
from pipeline.models.autoencoder import FusionOutput

Features = Callable[[Tensor], list[Tensor]]
"""The perceptual network: images (B, 3, S, S) -> features of each layer, (B, C, H, W)."""


class ExtraTerms:
    """Those whose weight in `loss_weights` is above 0."""

    def __init__(self, config: Config) -> None:
        weights = {name: getattr(config.loss_weights, name) for name in extra_losses.EXTRA_TERMS}
        self.weights: dict[str, float] = {name: weight for name, weight in weights.items() if weight}
        self.flipped_pairs = config.fusion.separation_pairs if "separation" in self.weights else 0
        """Pairs of a micro-batch of which each element is also flipped alone from A to B."""

    def __call__(
        self, output: FusionOutput, images: Tensor, of_a: list[Tensor], features: Features
    ) -> dict[str, Tensor]:
        """The terms by name: `ssim` (m,), the others (pairs,).

        Args:
            output: of E and G for `images`, which are (m, 3, S, S) in [-1, 1].
            of_a: the features of `images`.
        """
        terms = {}
        if "ssim" in self.weights:  # of A' and of B', which is A' rolled
            terms["ssim"] = 2 * (1 - extra_losses.structural_similarity(output.reconstruction, images))
        if output.flipped is not None:
            pairs, again = self.flipped_pairs, output.reconstruction
            seen = features(torch.cat([output.flipped, again[-1:], again[:pairs]]))
            of_flips = [each[: -pairs - 1] for each in seen]  # C_n of each pair, pair by pair
            of_again = [each[-pairs - 1 :] for each in seen]  # B' of the first pair, then A' of each: the next one's B'
            terms["separation"] = self._separation(of_flips, of_again)
            if "path" in self.weights:
                terms["path"] = self._path(of_flips, of_again, of_a)
        return terms

    def _separation(self, of_flips: list[Tensor], of_again: list[Tensor]) -> Tensor:
        flipped, again = represented(of_flips), represented(of_again)
        at_b, at_a = [each[:-1] for each in again], [each[1:] for each in again]
        elements = len(LAYERS)
        moved = represented_distances(flipped, [each.repeat_interleave(elements, dim=0) for each in at_a])
        by_pair = moved.unflatten(0, (self.flipped_pairs, elements))  # (pairs, N, L)
        return extra_losses.separation(by_pair, represented_distances(at_b, at_a))

    def _path(self, of_flips: list[Tensor], of_again: list[Tensor], of_a: list[Tensor]) -> Tensor:
        pairs = self.flipped_pairs
        flipped = perceptual_point([each.unflatten(0, (pairs, len(LAYERS))) for each in of_flips])
        start = perceptual_point([each[1:] for each in of_again])
        at_a = perceptual_point([each[:pairs] for each in of_a])
        to_a, to_start = (flipped.squared_distance(end[:, None]) for end in (at_a, start))
        return extra_losses.path(to_a, to_start, start.squared_distance(at_a))
