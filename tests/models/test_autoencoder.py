"""E, G, and both in one forward (docs/method.md, eq. 1)."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config.schema import ModelConfig
from pipeline.models.autoencoder import FusionAutoencoder, rolled
from pipeline.models.networks import Encoder, Generator
from pipeline.models.pyramid import MOST_STRETCHED, at_its_norm, bands, norm, spread, warped

OURS = {"blocks": "residual", "norm": "none", "structure": "pyramid"}
WARPED = {**OURS, "warp": True, "preserve_norm": True}
RECIPES: list[dict[str, Any]] = [{}, OURS, WARPED]


def model(base_channels: int = 2, **settings: Any) -> FusionAutoencoder:
    torch.manual_seed(0)
    return FusionAutoencoder(ModelConfig(base_channels=base_channels, **settings))


def images(count: int = 4, size: int = 64) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


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


def test_a_warp_samples_as_the_library_does() -> None:
    """Values and both gradients, also where pixels are taken from outside of the picture."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 16, 16, generator=random, dtype=torch.float64, requires_grad=True)
    moves = (0.4 * torch.randn(2, 2, 16, 16, generator=random, dtype=torch.float64)).requires_grad_()
    along = torch.linspace(-1 + 1 / 16, 1 - 1 / 16, 16, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(along, along, indexing="xy"), -1) + 2 * moves.movedim(1, -1)
    wanted = functional.grid_sample(x, grid, "bilinear", "border", align_corners=False)
    found = warped(x, moves)
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(found.shape, generator=random, dtype=torch.float64)
    for ours, theirs in zip(*(torch.autograd.grad(each, (x, moves), weights) for each in (found, wanted)), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(warped(x, torch.zeros_like(moves)), x)


def test_a_new_warp_moves_nothing_and_learns() -> None:
    both, batch = model(base_channels=8, **WARPED), images(2)
    without = model(base_channels=8, **{**WARPED, "warp": False})
    without.load_state_dict({k: v for k, v in both.state_dict().items() if ".warp." not in k})
    torch.testing.assert_close(both(batch).reconstruction, without(batch).reconstruction)
    warp: Any = both.generator.warp
    both(batch).reconstruction.square().mean().backward()
    assert warp.weight.grad.abs().max() > 0
    nn.init.normal_(warp.weight, std=0.5)
    z = both.encoder(batch)
    of_layout = both.generator(both.mix(z, rolled(z), torch.tensor([1.0, 1, 1, 1, 0])))
    torch.testing.assert_close(both.generator(both.mix(z, z, torch.rand(5))), both.generator(z), rtol=1e-2, atol=1e-4)
    assert (of_layout - both.generator(z)).abs().mean() > 1e-3


@torch.no_grad()
def test_a_mix_is_as_far_from_the_mean_face_as_its_faces() -> None:
    """The last channel of an element is its norm. A mix, which is shorter, is brought back to it."""
    both, batch = model(base_channels=8, **WARPED), images(8)
    z = both.encoder(batch)
    mixed = both.mix(z, rolled(z), torch.full((5,), 0.5))
    for of_ends, of_mix in zip(z.split(both.sizes, 1), mixed.split(both.sizes, 1), strict=True):
        torch.testing.assert_close(norm(of_ends[:, :-1]), of_ends[:, -1:, :1, :1])
        wanted, short = (norm(of_ends[:, :-1]) + norm(rolled(of_ends)[:, :-1])) / 2, norm(of_mix[:, :-1])
        assert (short < wanted).all()
        torch.testing.assert_close(norm(at_its_norm(of_mix)), torch.minimum(wanted, MOST_STRETCHED * short))
        assert torch.equal(at_its_norm(of_ends), of_ends[:, :-1])


@pytest.mark.parametrize("recipe", [OURS, WARPED])
@torch.no_grad()
def test_what_a_critic_of_latents_sees(recipe: dict[str, Any]) -> None:
    """Z_A and Z_C as G takes them in: each element at its norm, in units of its RMS over the batch."""
    both, batch = model(base_channels=8, **recipe), images(6)
    lam = torch.rand(6, 5, generator=torch.Generator().manual_seed(4))
    output = both(batch, lam, draw=False)
    z, seen_of_a, seen_of_c = both.encoder(batch), [], []
    for index, of_a in enumerate(z.split(both.sizes, 1)):
        share = lam[:, index, None, None, None]
        of_c = share * of_a + (1 - share) * of_a[[i - 1 for i in range(6)]]
        if both.generator.preserve_norm:
            of_a, of_c = at_its_norm(of_a), at_its_norm(of_c)
        seen_of_a.append(of_a / of_a.square().mean().sqrt())
        seen_of_c.append(of_c / of_a.square().mean().sqrt())
    torch.testing.assert_close(output.latent, torch.cat(seen_of_a, 1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(output.mixed, torch.cat(seen_of_c, 1), rtol=1e-3, atol=1e-3)
    assert output.fused is None
    torch.testing.assert_close(output.reconstruction, both(batch, lam).reconstruction, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
@torch.no_grad()
def test_noise_is_in_units_of_the_norm(recipe: dict[str, Any]) -> None:
    """With a pyramid on elements 4 and 5 alone, whose own norms stay."""
    both, batch = model(base_channels=8, **recipe).eval(), images(4)
    z = both.encoder(batch)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(5))
    added = both.encoder.with_noise(z, noise) - z
    output = both(batch, noise=noise)
    torch.testing.assert_close(output.reconstruction, both.generator(z + added), rtol=1e-4, atol=1e-7)
    assert not torch.equal(output.reconstruction, both.generator(z))
    if not recipe:
        torch.testing.assert_close(added, z.square().mean().sqrt() * noise, rtol=1e-3, atol=1e-4)
        return
    for index, (part, of_part) in enumerate(zip(added.split(both.sizes, 1), noise.split(both.sizes, 1), strict=True)):
        drawn = of_part.shape[1] - both.generator.preserve_norm
        wanted = norm(z.split(both.sizes, 1)[index][:, :drawn]) * of_part[:, :drawn] * (index >= 3)
        torch.testing.assert_close(part[:, :drawn], wanted, rtol=1e-3, atol=1e-4)
        assert not part[:, drawn:].any()


def test_the_mean_of_the_latents_is_brought_to_zero() -> None:
    """By E, which learns from it alone; the spread of the faces stays."""
    both, batch = model(base_channels=4, **WARPED), images(64)
    adam = torch.optim.Adam(both.parameters(), 1e-3)

    def drawn() -> Tensor:
        return torch.cat([each[:, :-1] for each in both.encoder(batch).split(both.sizes, 1)], dim=1)

    before = drawn().detach()
    product = before[:32].mean(0) * before[32:].mean(0)  # at each number of the latent
    torch.testing.assert_close(both(batch).off_centre, product.mean())
    for _ in range(100):
        off_centre = both(batch).off_centre
        assert off_centre is not None and off_centre.dim() == 0
        adam.zero_grad()
        off_centre.backward()
        adam.step()
    assert all(each.grad is None for name, each in both.generator.named_parameters())
    after = drawn().detach()
    assert after.mean(0).square().mean() < 0.1 * before.mean(0).square().mean()
    assert after.std(0).mean() > 0.5 * before.std(0).mean()


@torch.no_grad()
def test_bands_add_up() -> None:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    parts = bands(x)
    torch.testing.assert_close(sum(parts, torch.zeros(())), x)
    torch.testing.assert_close(bands(x + 5).detail, parts.detail)
    cells = x[..., :4, :4]
    interpolated = functional.interpolate(cells, scale_factor=4, mode="bilinear")
    torch.testing.assert_close(spread(cells, 4), interpolated)
    last = spread(cells.contiguous(memory_format=torch.channels_last), 4)
    torch.testing.assert_close(last, interpolated)
    assert last.is_contiguous(memory_format=torch.channels_last)
    checkers = torch.ones(1, 1, 16, 16)
    checkers[..., ::2, 1::2] = checkers[..., 1::2, ::2] = -1
    torch.testing.assert_close(bands(checkers).detail, checkers)


@torch.no_grad()
def test_elements_are_level_contrasts_layout_and_detail() -> None:
    """Of the last features each element moves its own part, whatever the others are; only 4 and 5 have a place."""
    both, batch = model(base_channels=8, **OURS).eval(), images(2)
    z_a, z_b = both.encoder(batch).split(1)

    def last_features(*of_b: int) -> Tensor:
        lam = torch.tensor([float(n not in of_b) for n in range(1, 6)])
        features: Tensor = both.generator.features(both.mix(z_a, z_b, lam), lambda x: x)
        return features

    close: Any = {"rtol": 1e-4, "atol": 1e-5}
    a = last_features()
    by_level = last_features(1) - a
    torch.testing.assert_close(by_level, by_level[..., :1, :1].expand_as(a), **close)
    # Detail and its contrast are one summand; level, layout and its contrast the other.
    torch.testing.assert_close(last_features(1, 2, 3, 4, 5), last_features(2, 4) + last_features(1, 3, 5) - a, **close)
    for contrast, drawing in ((2, 4), (3, 5)):
        by_contrast, by_drawing = last_features(contrast) - a, last_features(drawing) - a
        assert by_contrast.abs().max() > 1e-4 and by_drawing.abs().max() > 1e-3
    sizes = both.sizes
    flipped = z_a.flip(-1)
    styled = torch.cat([flipped[:, : sum(sizes[:3])], z_a[:, sum(sizes[:3]) :]], dim=1)
    torch.testing.assert_close(both.generator(styled), both.generator(z_a))
    assert not torch.allclose(both.generator(flipped), both.generator(z_a), atol=1e-3)


@torch.no_grad()
def test_level_and_contrast_of_the_first_features_are_style() -> None:
    """E's elements 4 and 5 do not see them; element 1 sees the level alone, 2 and 3 the contrast alone."""
    encoder = model(base_channels=8, **OURS).encoder.eval()
    batch = functional.interpolate(images(2, 8), scale_factor=8)  # with contrast enough that its floor hardly counts
    seen = []
    for level, contrast in ((0.0, 1.0), (1.0, 1.0), (0.0, 3.0)):
        hook = encoder.body[0].register_forward_hook(
            lambda _, __, x, by=level, times=contrast: by + torch.lerp(x.mean((2, 3), keepdim=True), x, times)
        )
        seen.append(encoder(batch).split([8, 16, 104], dim=1))
        hook.remove()
    plain, brighter, harder = seen
    for changed, moved in ((brighter, 0), (harder, 1)):
        near = [
            torch.allclose(before, after, rtol=1e-2, atol=5e-3) for before, after in zip(plain, changed, strict=True)
        ]
        assert near == [n != moved for n in range(3)]


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
