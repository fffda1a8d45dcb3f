"""Many Lambdas at once are the same as one after another."""

import pytest
import torch
from torch import Tensor

from pipeline.measures import mixing
from pipeline.models import latents


@pytest.mark.parametrize(("pairs", "batches"), [(1, [7]), (12, [24, 24, 24, 12]), (40, [40] * 7)])
def test_every_pair_at_every_lambda(pairs: int, batches: list[int]) -> None:
    z_a, z_b = torch.rand(2, pairs, 3, 2, 2)
    lambdas, sizes = torch.rand(7, 3), list[int]()

    def fuse(z_a: Tensor, z_b: Tensor, lambda_: Tensor) -> Tensor:
        sizes.append(len(z_a))
        return latents.mix(z_a, z_b, lambda_)

    found = [image for images, count in mixing.fused_at(fuse, z_a, z_b, lambdas) for image in images.chunk(count)]
    assert sizes == batches and len(found) == 7
    for images, lambda_ in zip(found, lambdas, strict=True):
        torch.testing.assert_close(images, latents.mix(z_a, z_b, lambda_))
