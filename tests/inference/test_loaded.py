"""What `load_bundle` gives people in Python: blends, pictures, and one line for every mistake."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from running import Trained, tiny_config

import pipeline
from pipeline.common.errors import UserError
from pipeline.data import images
from pipeline.inference import fuse
from pipeline.inference.loaded import LoadedBundle
from pipeline.models.autoencoder import FusionAutoencoder

SIDE = 32


@pytest.fixture(scope="module")
def bundle(trained: Trained) -> LoadedBundle:
    return pipeline.load_bundle(trained.bundle)


@pytest.fixture(scope="module")
def paths(trained: Trained) -> list[Path]:
    return sorted((trained.shards / "photographs").glob("*.jpg"))[:3]


def test_says_what_it_is(bundle: LoadedBundle) -> None:
    assert repr(bundle).startswith("Bundle(32 x 32 pixels, 5 elements (structure channels), ")
    assert repr(bundle).endswith(" parameters, train step 4, on cpu)") and "\n" not in repr(bundle)


def test_lists_and_arrays_are_photographs_too(bundle: LoadedBundle, paths: list[Path]) -> None:
    a, b, c = paths
    arrays = [np.asarray(images.to_pillow(images.read(path))) for path in paths]
    expected = torch.cat([bundle.load_image(path) for path in paths])
    with Image.open(c) as picture:
        alike: list[Any] = [paths, arrays, [a, arrays[1], picture], tuple(expected), [expected[:2], str(c)]]
        for given in alike:
            assert torch.equal(bundle.load_image(given), expected)
    fused = bundle.fuse([a, b], [b, c], [1, 0.5, 0, 0, 1])
    assert fused.shape == (2, 3, SIDE, SIDE)
    torch.testing.assert_close(fused[1:], bundle.fuse(b, c, [1, 0.5, 0, 0, 1]))
    torch.testing.assert_close(bundle.fuse([a, b], c, 0.5)[:1], bundle.fuse(a, c, 0.5))  # one is for all


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no photograph in the list"),
        (torch.full((3, SIDE, SIDE), 2.0), r"values from 2 to 2: .* in \[-1, 1\]; `x / 127.5 - 1`"),
        (torch.full((3, SIDE, SIDE), float("nan")), "values from nan to nan"),
        (torch.zeros(3, SIDE, SIDE, dtype=torch.uint8), "torch.uint8: this bundle takes .* `x / 127.5 - 1`"),
        (torch.zeros(0, 3, SIDE, SIDE), r"shape \(0, 3, 32, 32\)"),
        (np.zeros((3, SIDE, SIDE), np.uint8), r"\(H, W, 3\) of uint8 is needed"),
        (np.zeros((SIDE, SIDE, 3)), "type float64"),
        (np.zeros((SIDE, SIDE), np.uint8), r"\(H, W, 3\)"),
        (np.zeros((SIDE, 4, 3), np.uint8), "array: 4 x 32 pixels"),
        ({"a": 1}, "of type dict"),
        (None, "of type NoneType"),
    ],
)
def test_what_is_no_photograph_is_refused(bundle: LoadedBundle, given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bundle.load_image(given)


def test_what_resizing_overshoots_is_none_of_the_users_mistakes(bundle: LoadedBundle) -> None:
    assert bundle.load_image(torch.full((3, SIDE, SIDE), 1.0005)).shape == (1, 3, SIDE, SIDE)


@pytest.mark.parametrize("weight", [0.0, 1.0, 0.3, 1 / 3, 0.7])
def test_a_blend_of_two_is_equation_one(bundle: LoadedBundle, paths: list[Path], weight: float) -> None:
    a, b = (bundle.encode(path) for path in paths[:2])
    expected = bundle.fuse(a, b, weight)
    assert torch.equal(bundle.blend([a, b], [weight, 1 - weight]), expected)
    assert torch.equal(bundle.blend(paths[:2], torch.tensor([weight, 1 - weight])), expected)
    own = [weight, 1.0, 0.0, 0.2, 0.9]
    assert torch.equal(bundle.blend([a, b], [own, [1 - each for each in own]]), bundle.fuse(a, b, own))


def test_a_blend_of_two_keeps_their_norms_as_equation_one_does(trained: Trained, paths: list[Path]) -> None:
    structure = ("model.structure=pyramid", "model.preserve_norm=true", "data.image_size=64", "model.base_channels=4")
    config = tiny_config(trained.root / "norms" / "run", trained.shards, *structure)
    torch.manual_seed(0)
    bundle = LoadedBundle(config, FusionAutoencoder(config.model).eval().requires_grad_(False))
    assert repr(bundle).endswith("in training, on cpu)")
    own = [0.3, 1.0, 0.0, 0.6, 0.9]
    rest = [1 - each for each in own]
    assert torch.equal(bundle.blend(paths[:2], [own, rest]), bundle.fuse(paths[0], paths[1], own))
    alike = bundle.blend([paths[0]] * 4, [0.25] * 4)  # a face blended with itself is not paler
    torch.testing.assert_close(alike, bundle.generate(bundle.encode(paths[0])))


def test_a_blend_of_three(bundle: LoadedBundle, paths: list[Path]) -> None:
    z = bundle.encode(paths)
    weights = np.array([[0.5, 1, 0, 0.25, 0.2], [0.25, 0, 1, 0.25, 0.3], [0.25, 0, 0, 0.5, 0.5]])
    blended = np.zeros(z.shape[1:])
    first = 0
    for element, size in enumerate(bundle.model.sizes):
        part = slice(first, first + size)
        blended[part] = sum(weights[k, element] * z[k, part].double().numpy() for k in range(3))
        first += size
    expected = bundle.generate(torch.from_numpy(blended)[None].float())
    for given in (paths, z, list(bundle.load_image(paths)), [np.asarray(Image.open(path)) for path in paths]):
        torch.testing.assert_close(bundle.blend(given, weights), expected, rtol=0, atol=0.02)
    torch.testing.assert_close(bundle.blend(z, weights), expected, rtol=0, atol=1e-5)
    for k in range(3):  # all of one face is that face
        one = [float(k == each) for each in range(3)]
        torch.testing.assert_close(bundle.blend(z, one), bundle.generate(z[k : k + 1]))
    batches = bundle.blend([paths[:2], paths[1:], paths[0]], [1 / 3] * 3)
    torch.testing.assert_close(batches[:1], bundle.blend([paths[0], paths[1], paths[0]], [1 / 3] * 3))


@pytest.mark.parametrize(
    ("count", "weights", "message"),
    [
        (3, [0.5, 0.5], r"shape \(2,\) for 3 photographs: \(3,\) or \(3, 5\) is needed"),
        (3, [0.5, 0.5, 0.5], "add up to 1.5, not to 1; divide"),
        (2, [[0.5] * 5, [0.5] * 4 + [0.4]], "add up to 0.9"),
        (2, [1.5, -0.5], "1.5 is outside"),
        (2, [float("nan"), 1], "nan is outside"),
        (2, "half", "weights: 'half': numbers"),
        (2, 0.5, r"shape \(\)"),
        (2, torch.full((2, 5, 1), 0.5), "shape"),
        (0, [], "for 0 photographs"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    bundle: LoadedBundle, paths: list[Path], count: int, weights: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        bundle.blend(paths[:count], weights)


def test_batches_of_unequal_length_are_refused(bundle: LoadedBundle, paths: list[Path]) -> None:
    with pytest.raises(UserError, match="batches of 2, 3; make them equal, or 1"):
        bundle.blend([paths, paths[:2]], [0.5, 0.5])
    with pytest.raises(UserError, match="a and b: batches of 2, 3"):
        bundle.strip(paths, paths[:2])
    with pytest.raises(UserError, match="grid: 3 photographs"):
        bundle.grid(paths, paths[0])
    for given in (str(paths[0]), paths[0], 5):
        with pytest.raises(UserError, match="a list of photographs"):
            bundle.blend(given, [1])  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"a latent of shape \(1, 3, 32, 32\)"):
        bundle.generate(torch.zeros(1, 3, SIDE, SIDE))
    with pytest.raises(UserError, match="lambda: 'half'"):
        bundle.fuse(paths[0], paths[1], "half")  # type: ignore[arg-type]


def test_pictures_where_asked(bundle: LoadedBundle, paths: list[Path]) -> None:
    expected = images.to_uint8(bundle.fuse(paths, paths[0], 0.5))
    fused = bundle.fuse(paths, paths[0], 0.5, as_images=True)
    assert [picture.size for picture in fused] == [(SIDE, SIDE)] * 3
    assert all(torch.equal(images.from_pillow(each), pixels) for each, pixels in zip(fused, expected, strict=True))
    row = images.to_pillow(torch.cat(list(expected), 2)).resize((3 * 192, 192), Image.Resampling.BICUBIC)
    with Image.open(io.BytesIO(fused._repr_png_())) as shown:  # what a notebook asks for
        assert np.array_equal(np.asarray(shown), np.asarray(row))
    again = bundle.blend([paths, paths[0]], [0.5, 0.5], as_images=True) + bundle.generate(
        bundle.encode(paths), as_images=True
    )
    assert again[:3] == list(fused) and len(again) == 6


def test_a_region_is_a_mask_for_fuse(bundle: LoadedBundle, paths: list[Path]) -> None:
    a, b = paths[:2]
    mask = bundle.region("eyes")
    assert mask.shape == (SIDE, SIDE) and 0 < mask.mean() < 1
    assert torch.equal(bundle.region("eyes", a), fuse.named_region(bundle, "eyes", a).mask)
    inside = bundle.fuse(a, b, 0, mask=bundle.region("left"))
    change = (inside - bundle.generate(bundle.encode(a))).abs().mean(dim=(0, 1, 2))
    assert change[: SIDE // 4].mean() > change[-SIDE // 4 :].mean()
    assert torch.equal(bundle.fuse(a, b, 0, mask=bundle.region("left").numpy()), inside)
    with pytest.raises(UserError, match="mask: 'left': numbers"):
        bundle.fuse(a, b, 0, mask="left")  # type: ignore[call-overload]
    with pytest.raises(UserError, match="region ear: unknown; known are: eyes, nose"):
        bundle.region("ear")
    tight = pipeline.load_bundle(a.parents[2] / "bundle")
    tight.frame = {name: (x, y - SIDE) for name, (x, y) in bundle.frame.items()}
    with pytest.raises(UserError, match="outside of the pictures"):
        tight.region("hair")


def test_strips_and_grids(bundle: LoadedBundle, paths: list[Path]) -> None:
    a, b, c = paths
    tensors = [bundle.load_image(path) for path in paths]
    first = [(tensors[0], tensors[1])]
    assert bundle.strip(a, b, 3) == fuse.strips(bundle, first, 3)
    pairs = [(tensors[0], tensors[2]), (tensors[1], tensors[2])]
    assert bundle.strip([a, b], c) == fuse.strips(bundle, pairs, 6)
    mask = bundle.region("left")
    assert bundle.strip(a, b, 3, mask) == fuse.strips(bundle, first, 3, fuse.Region(mask))
    assert bundle.grid(a, b, 4) == fuse.grid(bundle, tensors[0], tensors[1], 4)
    for count in (1, 1001, 2.5, None):
        for draw in (bundle.strip, bundle.grid):
            with pytest.raises(UserError, match="a whole number from 2 to 1000"):
                draw(a, b, count)  # type: ignore[arg-type]


def test_presets(bundle: LoadedBundle) -> None:
    assert bundle.preset("content-style") == [0, 0, 0, 1, 1]
    with pytest.raises(UserError, match="known are: content-style"):
        bundle.preset("swap")


def test_devices(trained: Trained, bundle: LoadedBundle) -> None:
    assert bundle.to("cpu") is bundle and bundle.to(torch.device("cpu")).device.type == "cpu"
    for device in ("tpu", "gpu", "cuda:99", "") + (() if torch.cuda.is_available() else ("cuda",)):
        for move in (bundle.to, lambda name: pipeline.load_bundle(trained.bundle, name)):
            with pytest.raises(UserError, match="device: "):
                move(device)
