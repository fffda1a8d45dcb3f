"""E, G, and both in one forward, METHOD (1)."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.models.autoencoder import Encoder, FusionAutoencoder, Generator, rolled


def model(elements: int = 5, kernel_size: int = 4) -> FusionAutoencoder:
    torch.manual_seed(0)
    return FusionAutoencoder(ModelConfig(base_channels=2, elements=elements, kernel_size=kernel_size))  # type: ignore[arg-type]


def images(count: int = 4, size: int = 64) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("kernel_size", [4, 5])
def test_shapes(size: int, kernel_size: int) -> None:
    both = model(kernel_size=kernel_size)
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


def test_rolled_is_the_image_before() -> None:
    batch = torch.arange(4)
    assert rolled(batch).tolist() == [3, 0, 1, 2]


@pytest.mark.parametrize("spatial", [False, True])
@torch.no_grad()
def test_one_forward_is_encode_mix_generate(spatial: bool) -> None:
    both, batch = model().eval(), images()
    lam = torch.rand((4, 5, 2, 2) if spatial else (4, 5), generator=torch.Generator().manual_seed(2))
    output = both(batch, lam)
    for place in range(4):
        a, b = batch[place : place + 1], batch[place - 1 : place or None]
        z_a, z_b = both.encoder(a), both.encoder(b)
        fused = both.fuse_latents(z_a, z_b, lam[place])
        assert output.fused is not None
        torch.testing.assert_close(output.fused[place : place + 1], fused, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output.reconstruction[place : place + 1], both.generator(z_a), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_ends_are_exact() -> None:
    both, batch = model().eval(), images()
    z = both.encoder(batch)
    back = both.generator(z)
    for shape in ((5,), (4, 5), (5, 2, 2), (4, 5, 2, 2)):
        assert torch.equal(both.fuse_latents(z, rolled(z), torch.ones(shape)), back)
        assert torch.equal(both.fuse_latents(z, rolled(z), torch.zeros(shape)), both.generator(rolled(z)))
    # Inside one forward A' and C are one batch of G: equal bits as well.
    for value, target in ((1.0, lambda r: r), (0.0, rolled)):
        output = both(batch, torch.full((4, 5), value))
        assert output.fused is not None
        torch.testing.assert_close(output.fused, target(output.reconstruction), rtol=1e-5, atol=1e-6)


def test_every_parameter_gets_a_gradient() -> None:
    both = model()
    output = both(images(), torch.rand(4, 5))
    assert output.fused is not None
    output.fused.square().mean().backward()
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
