"""The structure `pyramid`: bands, warp, norms, noise, and what a critic of latents sees (docs/method.md)."""

from typing import Any

import pytest
import torch
from autoencoders import OURS, RECIPES, WARPED, images, model
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.autoencoder import rolled
from pipeline.models.pyramid import MOST_STRETCHED, at_its_norm, bands, norm, spread, warped


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


def test_moves_in_half_precision_are_of_less_than_a_pixel_everywhere() -> None:
    """From 64 on bf16 has only halves, and from 128 on whole numbers: places are of single precision."""
    ramp = torch.arange(256.0).expand(1, 1, 256, 256)
    for half in (torch.bfloat16, torch.float16):
        found = warped(ramp, torch.full((1, 2, 256, 256), 0.25 / 256, dtype=half))
        torch.testing.assert_close(found[..., :-1], ramp[..., :-1] + 0.25)


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
def test_a_step_of_adam_moves_no_pixel_far() -> None:
    """It changes every weight by the learning rate, at worst all the same way. From far moves no slope leads back."""
    wide, batch = model(base_channels=64, **WARPED), images(2)
    warp: Any = wide.generator.warp
    nn.init.constant_(warp.weight, 1e-3)
    moves = wide.generator.features(wide.encoder(batch), lambda features: features)[:, -2:]
    assert 0 < moves.abs().max() < 0.02, "a tenth of a warp's reach"


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
