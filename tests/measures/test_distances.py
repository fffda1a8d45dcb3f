"""Distances in the manner of LPIPS."""

import torch

from pipeline.measures.distances import perceptual_point, pixel_point


def features(seed: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.rand(3, channels, 4, 4, generator=random) for channels in (2, 5)]


def test_they_obey_the_triangle_inequality_and_ignore_scale() -> None:
    a, b, c = (perceptual_point(features(seed)) for seed in range(3))
    assert (a.distance(c) <= a.distance(b) + b.distance(c)).all()
    assert not a.distance(a).any()
    torch.testing.assert_close(perceptual_point([100 * x for x in features(0)]).distance(b), a.distance(b))


def test_images_without_common_channels_are_farthest_apart() -> None:
    """Squared: 2 at every place, whatever the layer."""
    one, other = torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3)
    one[:, 0], other[:, 1:3] = 7, 0.1
    distance = perceptual_point([one, one]).distance(perceptual_point([other, other]))
    torch.testing.assert_close(distance.square(), torch.full((2,), 2.0))
    half = perceptual_point([one, one]).distance(perceptual_point([other, one]))
    torch.testing.assert_close(half.square(), torch.full((2,), 1.0))


def test_pixels_count_by_their_difference() -> None:
    images = torch.zeros(2, 3, 4, 4)
    torch.testing.assert_close(pixel_point(images).distance(pixel_point(images + 0.5)), torch.full((2,), 0.5 * 3**0.5))


def test_a_part_of_a_batch() -> None:
    a, b = (perceptual_point(features(seed)) for seed in range(2))
    torch.testing.assert_close(a[1:].distance(b[1:]), a.distance(b)[1:])
    of_all = a[:, None].squared_distance(b)  # (3, 1) beside (3,)
    torch.testing.assert_close(of_all.diagonal(), a.squared_distance(b))
    torch.testing.assert_close(of_all[0, 2], a[:1].squared_distance(b[2:])[0])
