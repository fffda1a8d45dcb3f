"""Elements, Lambda and mixing (docs/method.md, eq. 1)."""

import numpy as np
import pytest
import torch

from pipeline.models import latents, pyramid


@pytest.mark.parametrize(
    ("channels", "elements", "sizes"),
    [(1024, 5, (204, 204, 204, 204, 208)), (32, 1, (32,)), (7, 7, (1,) * 7), (10, 4, (2, 2, 2, 4)), (6, 3, (2, 2, 2))],
)
def test_element_sizes(channels: int, elements: int, sizes: tuple[int, ...]) -> None:
    assert latents.element_sizes(channels, elements) == sizes


@pytest.mark.parametrize(("channels", "elements"), [(4, 5), (4, 0), (4, -1), (0, 1)])
def test_element_sizes_refuses(channels: int, elements: int) -> None:
    with pytest.raises(ValueError, match="cannot be split"):
        latents.element_sizes(channels, elements)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (3, 4, 5), (2, 3, 4, 5)])
def test_expand(shape: tuple[int, ...]) -> None:
    channels, height, width = 11, 4, 5
    lam = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    whole = latents.expand(lam, channels, height, width)
    batch = 2 if len(shape) in (2, 4) else 1
    assert whole.shape == (batch, channels, height, width) and whole.dtype == lam.dtype
    owner = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
    for b in range(batch):
        for c in range(channels):
            element = (lam[b] if batch == 2 else lam)[owner[c]]
            assert torch.equal(whole[b, c], element.expand(height, width))


@pytest.mark.parametrize("shape", [(), (2, 3, 5, 4), (3, 4, 4), (2, 3, 1, 1), (1, 2, 3, 4, 5), (12,), (2, 0)])
def test_expand_refuses(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"fit|split"):
        latents.expand(torch.zeros(shape), 11, 4, 5)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (5, 2, 2), (3, 5, 2, 2)])
def test_mix(shape: tuple[int, ...]) -> None:
    random = torch.Generator().manual_seed(1)
    z_a, z_b = torch.randn(3, 16, 2, 2, generator=random), torch.randn(3, 16, 2, 2, generator=random)
    assert torch.equal(latents.mix(z_a, z_b, torch.ones(shape)), z_a)
    assert torch.equal(latents.mix(z_a, z_b, torch.zeros(shape)), z_b)
    lam = torch.rand(shape, generator=random, dtype=torch.float64)
    mixed = latents.mix(z_a.double(), z_b.double(), lam)
    grid = lam.reshape(-1, 5, *(lam.shape[-2:] if len(shape) > 2 else (1, 1))).expand(3, 5, 2, 2)
    for channel, element in enumerate([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 4]):
        weight, a, b = grid[:, element], z_a[:, channel].double(), z_b[:, channel].double()
        torch.testing.assert_close(mixed[:, channel], weight * a + (1 - weight) * b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("channels", "sizes"), [(16, (1, 1, 1, 10, 3)), (384, (24, 24, 24, 234, 78)), (1024, (64, 64, 64, 624, 208))]
)
def test_a_pyramid_splits_unevenly(channels: int, sizes: tuple[int, ...]) -> None:
    assert pyramid.element_sizes(channels) == sizes and sum(sizes) == channels
    z_a, z_b = torch.zeros(1, channels, 2, 2), torch.ones(1, channels, 2, 2)
    for element in range(5):
        lam = 1 - torch.eye(5)[element]
        moved = latents.mix(z_a, z_b, lam, sizes).amax(dim=(0, 2, 3)).nonzero().flatten()
        assert torch.equal(moved, torch.arange(sum(sizes[:element]), sum(sizes[: element + 1])))
    one = torch.tensor([0.25])  # one lambda for all
    assert torch.equal(latents.mix(z_a, z_b, one, sizes), latents.mix(z_a, z_b, one))


def test_owner_matrices() -> None:
    assert torch.equal(latents.owner_matrix("layerwise", 5, 5), torch.eye(5))
    assert torch.equal(latents.owner_matrix("shared", 4, 5), torch.full((4, 5), 0.25))
    given = [[1.0, 0.5, 0, 0, 0], [0, 0.5, 1, 1, 1]]
    assert torch.equal(latents.owner_matrix("map", 2, 5, given), torch.tensor(given))


def test_layer_lambdas() -> None:
    random = torch.Generator().manual_seed(0)
    lam, owners = torch.rand(3, 2, generator=random), torch.tensor([[1.0, 0.25, 0], [0, 0.75, 1]])
    ours = latents.layer_lambdas(lam, owners)
    assert ours.shape == (3, 3)
    for b in range(3):
        for layer in range(3):
            expected = sum(float(lam[b, n]) * float(owners[n, layer]) for n in range(2))
            assert float(ours[b, layer]) == pytest.approx(expected)
    grid = torch.rand(3, 2, 4, 5, generator=random)
    ours = latents.layer_lambdas(grid, owners)
    assert ours.shape == (3, 3, 4, 5)
    torch.testing.assert_close(ours[:, 1], 0.25 * grid[:, 0] + 0.75 * grid[:, 1])
    eye = latents.owner_matrix("layerwise", 5, 5)
    five = torch.rand(3, 5, generator=random)
    assert torch.equal(latents.layer_lambdas(five, eye), five)
    same = torch.full((3, 5), 0.3)
    torch.testing.assert_close(latents.layer_lambdas(same, latents.owner_matrix("shared", 5, 5)), same)


def test_a_blend_is_the_weighted_sum_of_each_element() -> None:
    draw = torch.Generator().manual_seed(0)
    faces = [torch.randn(2, 7, 3, 4, generator=draw) for _ in range(4)]
    weights = torch.rand(4, 3, generator=draw)
    weights = weights / weights.sum(dim=0)
    sizes = (1, 4, 2)
    expected = np.zeros((2, 7, 3, 4))
    for face, row in zip(faces, weights.double().numpy(), strict=True):
        expected += face.double().numpy() * np.repeat(row, sizes)[None, :, None, None]
    np.testing.assert_allclose(latents.blend(faces, weights, sizes).numpy(), expected, atol=1e-6)
    pair = torch.stack([weights[0], 1 - weights[0]])
    assert torch.equal(latents.blend(faces[:2], pair, sizes), latents.mix(faces[0], faces[1], weights[0], sizes))
