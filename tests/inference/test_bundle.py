"""Bundles: what is fused, and what is refused."""

from typing import Any

import pytest
import torch
from PIL import Image
from running import Trained

import pipeline
from pipeline.common.errors import UserError
from pipeline.data import images


def test_takes_tensors_pictures_paths_and_latents_alike(trained: Trained) -> None:
    bundle = pipeline.load_bundle(str(trained.bundle))
    a, b = trained.photographs
    tensors = [images.normalise(images.fit(images.read(path), 32)) for path in (a, b)]
    expected = bundle.fuse(tensors[0], tensors[1], [1, 0.5, 0, 0, 1])
    assert expected.shape == (1, 3, 32, 32) and not expected.requires_grad and expected.abs().max() <= 1
    assert torch.equal(bundle.fuse(a, str(b), [1, 0.5, 0, 0, 1]), expected)
    assert torch.equal(bundle.fuse(tensors[0][None], b, torch.tensor([1, 0.5, 0, 0, 1])), expected)
    with Image.open(a) as picture_a, Image.open(b) as picture_b:
        from_pillow = bundle.fuse(picture_a, picture_b, [1, 0.5, 0, 0, 1])
    assert (from_pillow - expected).abs().max() < 0.02  # Pillow and torchvision round JPEGs differently
    latents = [bundle.encode(path) for path in (a, b)]
    assert torch.equal(bundle.fuse(latents[0], latents[1], [1, 0.5, 0, 0, 1]), expected)
    assert torch.equal(bundle.fuse(a, latents[1], [1, 0.5, 0, 0, 1]), expected)
    batch = torch.stack(tensors)
    fused = bundle.fuse(batch, batch.flip(0), torch.tensor([[1, 0.5, 0, 0, 1], [0, 0, 0, 0, 0.0]]))
    torch.testing.assert_close(fused[:1], expected)
    torch.testing.assert_close(fused[1:], bundle.generate(bundle.encode(tensors[0])))


def test_every_shape_of_lambda(trained: Trained) -> None:
    bundle = pipeline.load_bundle(trained.bundle)
    a, b = (bundle.load_image(path) for path in trained.photographs)
    expected = bundle.fuse(a, b, [0.25] * 5)
    for lambda_ in (0.25, torch.full((1, 5), 0.25), torch.full((5, 1, 1), 0.25), torch.full((1, 5, 1, 1), 0.25)):
        assert torch.equal(bundle.fuse(a, b, lambda_), expected)
    assert torch.equal(bundle.fuse(a, b, 1), bundle.generate(bundle.encode(a)))
    assert torch.equal(bundle.fuse(a, b, 0), bundle.generate(bundle.encode(b)))


@pytest.mark.parametrize(
    ("lambda_", "message"),
    [
        ([1, 0], "2 values: this bundle takes 1 or 5 numbers"),
        ([0.5] * 6, "6 values"),
        ([0, 0, 0, 0, 1.5], "1.5 is outside"),
        (-0.1, "-0.1 is outside"),
        (float("nan"), "nan is outside"),
        (torch.ones(5, 2, 2), "shape"),
        (torch.ones(1, 5, 1), "shape"),
        (torch.ones(2, 2), "shape"),
        (torch.ones(1, 1, 5, 1, 1), "shape"),
    ],
)
def test_a_lambda_that_does_not_fit_is_refused(trained: Trained, lambda_: Any, message: str) -> None:
    """Whatever is fused: photographs or latents."""
    bundle = pipeline.load_bundle(trained.bundle)
    z = bundle.encode(trained.photographs[0])
    for a in (z, trained.photographs[0]):
        with pytest.raises(UserError, match=message):
            bundle.fuse(a, z, lambda_)


def test_batches_that_do_not_fit_each_other_are_refused(trained: Trained) -> None:
    bundle = pipeline.load_bundle(trained.bundle)
    z = torch.cat([bundle.encode(path) for path in trained.photographs])
    for a, lambda_ in ((torch.cat([z, z[:1]]), 0.5), (z, torch.ones(3, 5))):
        with pytest.raises(UserError, match="batches of 2, 3"):
            bundle.fuse(a, z, lambda_)
    many = bundle.fuse(z[:1], z[1:], torch.tensor([[1.0] * 5, [0.5] * 5]))  # one pair, two Lambdas
    torch.testing.assert_close(many[1:], bundle.fuse(z[:1], z[1:], 0.5))


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 32, 32), (32, 32), (1, 1, 3, 32, 32)])
def test_an_image_tensor_that_does_not_fit_is_refused(trained: Trained, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="an image tensor of shape"):
        pipeline.load_bundle(trained.bundle).load_image(torch.zeros(shape))
