"""E, G, and both in one forward (docs/method.md, eq. 1)."""

from typing import Any

import pytest
import torch
from autoencoders import OURS, RECIPES, images, model
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config.schema import ModelConfig
from pipeline.models.autoencoder import FusionAutoencoder, rolled
from pipeline.models.networks import Encoder, Generator


@pytest.mark.parametrize(("size", "kernel_size"), [(32, 4), (64, 5), (128, 4)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_shapes(size: int, kernel_size: int, recipe: dict[str, Any]) -> None:
    both = model(kernel_size=kernel_size, **recipe)
    batch = images(2, size)
    z = both.encoder(batch)
    assert z.shape == (2, 32, size // 32, size // 32)
    assert both.generator(z).shape == batch.shape
    output = both(batch, torch.rand(2, 5))
    assert output.fused is not None
    assert output.reconstruction.shape == output.fused.shape == batch.shape
    assert output.fused.abs().max() <= 1
    assert both(batch).fused is None


def test_layers_are_the_papers() -> None:
    with torch.device("meta"):
        both = FusionAutoencoder(ModelConfig())
    down = [layer for layer in both.encoder.modules() if isinstance(layer, nn.Conv2d)]
    up = [layer for layer in both.generator.modules() if isinstance(layer, nn.ConvTranspose2d)]
    assert [layer.out_channels for layer in down] == [64, 128, 256, 512, 1024]
    assert [layer.out_channels for layer in up] == [512, 256, 128, 64, 3]
    assert all(
        layer.kernel_size == (4, 4) and layer.stride == (2, 2) and layer.padding == (1, 1) for layer in down + up
    )
    norms_e = [layer.num_features for layer in both.encoder.modules() if isinstance(layer, nn.BatchNorm2d)]
    norms_g = [layer.num_features for layer in both.generator.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert (norms_e, norms_g) == ([128, 256, 512, 1024], [512, 256, 128, 64])
    slopes = [layer.negative_slope for layer in both.encoder.modules() if isinstance(layer, nn.LeakyReLU)]
    assert slopes == [0.2] * 5
    last = list(both.generator.modules())
    assert sum(isinstance(layer, nn.ReLU) for layer in last) == 4 and isinstance(last[-1], nn.Tanh)
    assert both.encoder(torch.zeros(1, 3, 128, 128, device="meta")).shape == (1, 1024, 4, 4)


@pytest.mark.parametrize("spatial", [False, True])
@torch.no_grad()
def test_one_forward_is_encode_mix_generate(spatial: bool) -> None:
    both, batch = model().eval(), images()
    lam = torch.rand((4, 5, 2, 2) if spatial else (4, 5), generator=torch.Generator().manual_seed(2))
    output = both(batch, lam)
    assert output.fused is not None
    for index in range(4):
        z_a, z_b = both.encoder(batch[index, None]), both.encoder(batch[index - 1, None])
        fused, back = both.fuse_unchecked(z_a, z_b, lam[index]), both.generator(z_a)
        torch.testing.assert_close(output.fused[index, None], fused, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output.reconstruction[index, None], back, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_ends_are_exact() -> None:
    both, batch = model().eval(), images()
    z = both.encoder(batch)
    back = both.generator(z)
    for shape in ((5,), (4, 5), (5, 2, 2), (4, 5, 2, 2)):
        assert torch.equal(both.fuse_unchecked(z, rolled(z), torch.ones(shape)), back)
        assert torch.equal(both.fuse_unchecked(z, rolled(z), torch.zeros(shape)), both.generator(rolled(z)))
    # Inside one forward A' and C are one batch of G: equal bits as well.
    for value, target in ((1.0, lambda r: r), (0.0, rolled)):
        output = both(batch, torch.full((4, 5), value))
        assert output.fused is not None
        torch.testing.assert_close(output.fused, target(output.reconstruction), rtol=1e-5, atol=1e-6)


def settled(batch: Tensor, **settings: Any) -> FusionAutoencoder:
    """A model whose BatchNorm fits `batch`: with random weights alone its images hardly differ."""
    both = model(**settings)
    for layer in both.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    both(batch)
    return both.eval()


def square(size: int, first: int, last: int) -> Tensor:
    """(size, size): 1 in a square of pixels."""
    mask = torch.zeros(size, size)
    mask[first:last, first:last] = 1
    return mask


@pytest.mark.parametrize("size", [32, 64, 128, 256])
@pytest.mark.parametrize("shape", [(1,), (5,), (3, 5), (3, 5, 1, 1)])
@pytest.mark.parametrize("recipe", RECIPES)
@torch.no_grad()
def test_an_empty_and_a_full_region_are_exact(size: int, shape: tuple[int, ...], recipe: dict[str, Any]) -> None:
    batch = images(3, size)
    both = settled(batch, **recipe)
    z_a, side = both.encoder(batch), size // 32
    z_b = rolled(z_a)
    lam = torch.rand(shape, generator=torch.Generator().manual_seed(3))
    lam = lam.expand(3, 5, side, side) if lam.dim() == 4 else lam
    back = both.generator(z_a)
    for mask in (torch.zeros(size, size), torch.zeros(3, size, size)):
        assert torch.equal(both.fuse_unchecked(z_a, z_b, lam, mask), back)
        assert torch.equal(both.fuse_unchecked(z_a, z_b, lam, 1 - mask), both.fuse_unchecked(z_a, z_b, lam))


@torch.no_grad()
def test_masking_the_features_keeps_the_change_inside() -> None:
    batch = images(4, 128)
    both = settled(batch)
    z_a, mask = both.encoder(batch), square(128, 47, 73)
    z_b = rolled(z_a)
    back, fused = both.generator(z_a), both.fuse_unchecked(z_a, z_b, torch.zeros(5), mask)
    spatial = 1 - functional.adaptive_avg_pool2d(mask[None], 4).expand(5, 4, 4)
    whole, soft = both.fuse_unchecked(z_a, z_b, torch.zeros(5)), both.fuse_unchecked(z_a, z_b, spatial)

    def change(image: Tensor, where: Tensor) -> float:
        return float(((image - back).abs().mean((0, 1)) * where).sum() / where.sum())

    assert change(fused, 1 - mask) / change(fused, mask) < 0.02
    assert change(soft, 1 - mask) / change(soft, mask) > 0.2  # a spatial Lambda alone
    assert change(fused, mask) > 0.8 * change(whole, mask)
    # A cell of the 32 x 32 features is 4 pixels wide, and the two blocks behind it reach 3 further.
    near, edge = (functional.max_pool2d(mask[None], 2 * pixels + 1, 1, pixels)[0] for pixels in (6, 5))
    assert change(fused, 1 - near) == 0 and change(fused, near - edge) > 0


@torch.no_grad()
def test_each_pair_has_its_own_region() -> None:
    batch = images(3, 64)
    both = settled(batch)
    z_a = both.encoder(batch)
    masks = torch.stack([square(64, 0, 20), square(64, 30, 50), torch.rand(64, 64)])
    lam = torch.rand(3, 5, generator=torch.Generator().manual_seed(4))
    fused = both.fuse_unchecked(z_a, rolled(z_a), lam, masks)
    for pair in range(3):
        one = both.fuse_unchecked(z_a[pair, None], rolled(z_a)[pair, None], lam[pair], masks[pair])
        torch.testing.assert_close(fused[pair, None], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [32, 64])
@torch.no_grad()
def test_a_grey_region_is_blended_once(size: int) -> None:
    """Half a mask everywhere is half of both features before the picture, however many masks come before."""
    batch = images(2, size)
    both = settled(batch)
    z_a = both.encoder(batch)
    fused = both.fuse_unchecked(z_a, rolled(z_a), torch.zeros(5), torch.full((size, size), 0.5))
    *hidden, output = both.generator.body
    a, b = z_a, rolled(z_a)
    for block in hidden:
        a, b = block(a), block(b)
    torch.testing.assert_close(fused, output((a + b) / 2), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [64, 128])
@torch.no_grad()
def test_a_region_takes_on_a_style_and_the_rest_does_not(size: int) -> None:
    batch = images(2, size)
    both = model(base_channels=8, **OURS).eval()
    z_a = both.encoder(batch)
    mask = square(size, size // 4, size // 2)
    style_of_b = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0])
    back, fused = both.generator(z_a), both.fuse_unchecked(z_a, rolled(z_a), style_of_b, mask)
    away = 1 - functional.max_pool2d(mask[None], 9, 1, 4)[0]
    change = (fused - back).abs().mean((0, 1))
    assert change[mask > 0].mean() > 3e-4 and change[away > 0].max() == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_parameter_gets_a_gradient(recipe: dict[str, Any]) -> None:
    both = model(**recipe)
    output = both(images(), torch.rand(4, 5))
    assert output.fused is not None
    loss = output.fused.square().mean()
    (loss if output.off_centre is None else loss + output.off_centre.mean()).backward()
    missing = [name for name, p in both.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


def test_gradient_reaches_both_images() -> None:
    both, batch = model().eval(), images().requires_grad_()
    output = both(batch, torch.full((4, 5), 0.5))
    assert output.fused is not None
    output.fused[1].sum().backward()
    assert batch.grad is not None
    assert batch.grad.flatten(1).abs().sum(1).gt(0).tolist() == [True, True, False, False]


def test_state_is_encoder_and_generator() -> None:
    config = ModelConfig(base_channels=2)
    both = FusionAutoencoder(config)
    both.encoder.load_state_dict(Encoder(config).state_dict())
    both.generator.load_state_dict(Generator(config).state_dict())
    assert {name.split(".")[0] for name in both.state_dict()} == {"encoder", "generator"}
