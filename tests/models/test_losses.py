"""docs/method.md, eq. 2 to 11, against NumPy in float64; gradients against finite differences."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import pipeline
from pipeline.models import latents, losses

Array = NDArray[np.float64]
SHAPES = [(1, 1, 2, 2), (1, 3, 5, 4), (4, 3, 6, 9), (3, 8, 4, 4), (2, 2, 1, 7)]
LAMBDAS = [0.0, 1.0, 0.25, 0.9]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def three(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    return drawn(*shape, seed=1), drawn(*shape, seed=2), drawn(*shape, seed=3)


# The equations once more, an image and a pixel at a time.


def l1(x: Array, y: Array) -> Array:
    pairs = zip(x, y, strict=True)
    return np.array([sum(abs(p - q) for p, q in zip(a.flat, b.flat, strict=True)) / a.size for a, b in pairs])


def variation(x: Array) -> Array:
    totals = []
    for image in x:
        total = 0.0
        for plane in image:
            for i in range(plane.shape[0]):
                for j in range(plane.shape[1]):
                    if j + 1 < plane.shape[1]:
                        total += (plane[i, j + 1] - plane[i, j]) ** 2
                    if i + 1 < plane.shape[0]:
                        total += (plane[i + 1, j] - plane[i, j]) ** 2
        totals.append(total / image.size)
    return np.array(totals)


def gram(x: Array) -> Array:
    count, channels, height, width = x.shape
    psi = np.zeros((count, channels, channels))
    for image in range(count):
        for c in range(channels):
            for d in range(channels):
                psi[image, c, d] = (x[image, c] * x[image, d]).sum() / (channels * height * width)
    return psi


def mean_square(x: Array, y: Array) -> Array:
    return np.array([((a - b) ** 2).sum() / a.size for a, b in zip(x, y, strict=True)])


def toward(distance: Callable[[Array, Array], Array], x: Array, a: Array, b: Array, lam: Array) -> Array:
    return lam * distance(x, a) + (1 - lam) * distance(x, b)


def content_at(x: Array, a: Array, b: Array, grid: Array) -> Array:
    """Eq. 4 for a lambda that varies over the grid: every pixel follows the cell that holds its centre."""
    count, channels, height, width = x.shape
    result = np.zeros(count)
    for n in range(count):
        for i in range(height):
            for j in range(width):
                row = int((i + 0.5) * grid.shape[1] / height)
                column = int((j + 0.5) * grid.shape[2] / width)
                lam = grid[n, row, column]
                for c in range(channels):
                    to_a, to_b = (x[n, c, i, j] - a[n, c, i, j]) ** 2, (x[n, c, i, j] - b[n, c, i, j]) ** 2
                    result[n] += (lam * to_a + (1 - lam) * to_b) / (channels * height * width)
    return result


def agrees(ours: Tensor, expected: Array, tolerance: float = 1e-12) -> None:
    assert tuple(ours.shape) == expected.shape
    np.testing.assert_allclose(ours.double().numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_every_equation(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    x, a, b = (t.to(dtype) for t in three(shape))
    nx, na, nb = (t.double().numpy() for t in (x, a, b))
    agrees(losses.reconstruction(x, a), l1(nx, na), tolerance)
    agrees(losses.total_variation(x), variation(nx), tolerance)
    agrees(losses.gram_matrix(x), gram(nx), tolerance)
    for value in LAMBDAS:
        lam = torch.full(shape[:1], value, dtype=dtype)
        lam[-1] = 1 - value if shape[0] > 1 else value
        number = lam.double().numpy()
        agrees(losses.content(x, a, b, lam), toward(mean_square, nx, na, nb, number), tolerance)
        agrees(losses.style(x, a, b, lam), toward(mean_square, gram(nx), gram(na), gram(nb), number), tolerance)
    scores, others = x[:, 0, 0, 0], a[:, 0, 0, 0]
    agrees(losses.adversarial_critic(scores, others), others.double().numpy() - scores.double().numpy(), tolerance)
    agrees(losses.adversarial_generator(scores), -scores.double().numpy(), tolerance)
    for k, p in ((2.0, 6.0), (2.0, 2.0), (0.5, 3.0)):
        expected = np.array([k * np.linalg.norm(image.ravel(), 2) ** p for image in nx])
        agrees(losses.gradient_penalty(x, k, p), expected, tolerance * 10)
    assert torch.equal(losses.gradient_penalty(x), losses.gradient_penalty(x, 2.0, 6.0)), "the paper's by default"


@pytest.mark.parametrize(("size", "grid"), [((4, 4), (2, 2)), ((6, 9), (2, 3)), ((8, 4), (4, 1)), ((5, 7), (2, 3))])
def test_content_with_spatial_lambda(size: tuple[int, int], grid: tuple[int, int]) -> None:
    x, a, b = three((3, 2, *size))
    lam = torch.from_numpy(np.random.default_rng(5).random((3, *grid)))
    agrees(losses.content(x, a, b, lam), content_at(x.numpy(), a.numpy(), b.numpy(), lam.numpy()))
    flat = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    everywhere = flat[:, None, None].expand(3, *grid)
    torch.testing.assert_close(losses.content(x, a, b, everywhere), losses.content(x, a, b, flat))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_are_wide(dtype: torch.dtype) -> None:
    x, a, b = (t.to(dtype) for t in three((2, 3, 4, 4)))
    lam = torch.tensor([0.5, 1.0], dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    results = [
        losses.reconstruction(x, a),
        losses.total_variation(x),
        losses.gram_matrix(x),
        losses.content(x, a, b, lam),
        losses.style(x, a, b, lam),
        losses.adversarial_critic(x[:, 0, 0, 0], a[:, 0, 0, 0]),
        losses.adversarial_generator(x[:, 0, 0, 0]),
        losses.gradient_penalty(x),
    ]
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert [r.dtype for r in results] == [wanted] * len(results)
    assert all(r.shape[0] == 2 for r in results)


def test_half_precision_does_not_overflow() -> None:
    large = torch.full((2, 2, 64, 64), 300.0, dtype=torch.float16)  # squares are 90,000: over fp16's 65,504
    agrees(losses.gram_matrix(large), np.full((2, 2, 2), 45_000.0))
    zeros = torch.zeros_like(large)
    lam = torch.ones(2)
    agrees(losses.content(large, zeros, zeros, lam), np.full(2, 90_000.0))
    agrees(losses.style(large, zeros, zeros, lam), np.full(2, 45_000.0**2), 1e-6)
    assert torch.isfinite(losses.gradient_penalty(torch.full((1, 3, 8, 8), 2.0, dtype=torch.float16))).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        exact = losses.gram_matrix(drawn(1, 3, 7, 5).float())
    assert exact.dtype == torch.float32
    agrees(exact, gram(drawn(1, 3, 7, 5).float().double().numpy()), 1e-6)


@pytest.mark.parametrize("shape", [(1, 2, 3, 2), (2, 3, 2, 4)])
def test_gradients(shape: tuple[int, ...]) -> None:
    x, a, b = (t.requires_grad_() for t in three(shape))
    lam = torch.linspace(0.3, 0.8, shape[0], dtype=torch.float64).requires_grad_()
    grid = torch.rand(shape[0], 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores, others = drawn(4, seed=1).requires_grad_(), drawn(4, seed=2).requires_grad_()
    check = torch.autograd.gradcheck
    assert check(losses.reconstruction, (x, a))
    assert check(losses.total_variation, (x,))
    assert check(losses.gram_matrix, (x,))
    assert check(losses.content, (x, a, b, lam))
    assert check(losses.content, (x, a, b, grid.requires_grad_()))
    assert check(losses.style, (x, a, b, lam))
    assert check(losses.adversarial_critic, (scores, others))
    assert check(losses.adversarial_generator, (scores,))
    assert check(losses.gradient_penalty, (x,))
    assert torch.autograd.gradgradcheck(losses.gradient_penalty, (x,))
    weights = {"one": 0.5, "two": 3.0}
    assert check(lambda s, o: losses.weighted_total({"one": s, "two": o}, weights), (scores, others))


def penalty_of(points: Tensor, weight: Tensor, last: Tensor, p: float = 6.0) -> Tensor:
    """The penalty of a small smooth critic, as a function of its weights."""
    points = points.detach().requires_grad_()
    scores = torch.tanh(nn.functional.conv2d(points, weight, stride=2)).flatten(1) @ last
    (gradients,) = torch.autograd.grad(scores.sum(), points, create_graph=True)
    return losses.gradient_penalty(gradients, p=p)


@pytest.mark.parametrize("p", [2.0, 3.0, 6.0])
def test_penalty_trains_the_critic(p: float) -> None:
    points = drawn(2, 3, 4, 4)
    weight, last = drawn(4, 3, 2, 2, seed=1).requires_grad_(), drawn(16, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda w, v: penalty_of(points, w, v, p), (weight, last))


@pytest.mark.parametrize("p", [2.0, 3.0, 6.0])
def test_penalty_at_zero_gradient_is_finite(p: float) -> None:
    weight, last = drawn(4, 3, 2, 2, seed=1).requires_grad_(), torch.zeros(16, dtype=torch.float64, requires_grad=True)
    penalty = penalty_of(drawn(2, 3, 4, 4), weight, last, p)
    penalty.sum().backward()
    assert torch.equal(penalty, torch.zeros(2, dtype=torch.float64))
    assert weight.grad is not None and last.grad is not None
    assert torch.equal(weight.grad, torch.zeros_like(weight)) and torch.equal(last.grad, torch.zeros_like(last))


@pytest.mark.parametrize("loss", [losses.content, losses.style])
def test_lambda_is_linear(loss: Callable[..., Tensor]) -> None:
    x, a, b = three((5, 3, 4, 4))
    ones = torch.ones(5, dtype=torch.float64)
    lam = torch.linspace(0, 1, 5, dtype=torch.float64)
    torch.testing.assert_close(loss(x, a, b, lam), lam * loss(x, a, b, ones) + (1 - lam) * loss(x, a, b, 0 * ones))
    torch.testing.assert_close(loss(x, a, b, 1 - lam), loss(x, b, a, lam))
    assert torch.equal(loss(x, x, b, ones), torch.zeros(5, dtype=torch.float64))
    assert (loss(x, x, b, 0 * ones) > 0).all()


def test_between_two_targets_is_the_gradient_of_a_mixed_target() -> None:
    x, a, b = three((3, 2, 4, 4))
    lam = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    x.requires_grad_()
    (ours,) = torch.autograd.grad(losses.content(x, a, b, lam).sum(), x)
    weight = lam[:, None, None, None]
    mixed = (x - (weight * a + (1 - weight) * b)).square().mean(dim=(1, 2, 3))
    (wanted,) = torch.autograd.grad(mixed.sum(), x)
    torch.testing.assert_close(ours, wanted)
    grams = [losses.gram_matrix(t) for t in (x, a, b)]
    target = lam[:, None, None] * grams[1] + (1 - lam[:, None, None]) * grams[2]
    (wanted,) = torch.autograd.grad((grams[0] - target).square().mean(dim=(1, 2)).sum(), x)
    (ours,) = torch.autograd.grad(losses.style(x, a, b, lam).sum(), x)
    torch.testing.assert_close(ours, wanted)


def test_weighted_total() -> None:
    terms = {"content": torch.tensor([1.0, 3.0]), "style": torch.tensor([10.0, 30.0])}
    total = losses.weighted_total(terms, {"style": 0.5, "content": 7.0})
    assert total.shape == () and total.item() == pytest.approx(7 * 2 + 0.5 * 20)
    with pytest.raises(ValueError, match="style"):
        losses.weighted_total(terms, {"content": 7.0})
    with pytest.raises(ValueError, match="extra"):
        losses.weighted_total(terms, {"style": 0.5, "content": 7.0, "extra": 1.0})


def test_the_package_gives_the_equations_by_name() -> None:
    """Without importing torch before one is asked for: `test_architecture` sees to that."""
    assert pipeline.losses is losses and pipeline.latents is latents
    with pytest.raises(AttributeError, match="has no attribute 'autoencoder'"):
        _ = pipeline.autoencoder
