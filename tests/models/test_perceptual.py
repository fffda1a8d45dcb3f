"""P: which layers are tapped, at which scale, and where its weights come from."""

import hashlib
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import vgg

from pipeline.common.errors import UserError
from pipeline.config.schema import LAYERS, PerceptualConfig
from pipeline.data.images import decode, fit, normalise
from pipeline.models import perceptual
from pipeline.models.perceptual import OXFORD_RMS, PerceptualNetwork

SHARED = Path(__file__).resolve().parents[3] / "shared"
REAL = SHARED / "weights" / "vgg16_imagenet_features_fp16.safetensors"
FACES = SHARED / "faces" / "img_align_celeba.zip"
FIGURES = {"vgg16": "D", "vgg19": "E"}  # the names in Simonyan and Zisserman's table


def features(arch: str) -> nn.Sequential:
    """torchvision's VGG without its classifier of 100 million weights."""
    layers: nn.Sequential = vgg.make_layers(vgg.cfgs[FIGURES[arch]])
    return layers


def network(arch: str = "vgg16", weights: str = "random", scale: str = "none") -> PerceptualNetwork:
    return PerceptualNetwork(PerceptualConfig(arch=arch, weights=weights, feature_scale=scale))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some VGG-16, as a file."""
    path = tmp_path_factory.mktemp("weights") / "vgg16.safetensors"
    torch.manual_seed(5)
    state = {f"features.{key}": value.half() for key, value in features("vgg16").state_dict().items()}
    save_file(state, path)
    return path


def images(count: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def tapped_by_hand(net: PerceptualNetwork, arch: str, batch: Tensor) -> dict[str, Tensor]:
    """Walk through torchvision's layers, naming the convolutions by their place between the poolings."""
    reference = features(arch).eval()
    wanted = reference.state_dict()
    given = net.features.state_dict()
    reference.load_state_dict({key: given.get(key, wanted[key]) for key in wanted})
    x = (batch + 1) / 2
    x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    tapped, block, number = {}, 1, 0
    for layer in reference:
        if isinstance(layer, nn.MaxPool2d):
            block, number = block + 1, 0
            x = nn.functional.max_pool2d(x, 2)
        elif isinstance(layer, nn.Conv2d):
            number += 1
            x = nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
        else:
            x = x.clamp(min=0)
            tapped[f"conv{block}_{number}"] = x
    return tapped


@pytest.mark.parametrize("arch", ["vgg16", "vgg19"])
def test_taps_are_after_relu_of_the_named_convolutions(arch: str) -> None:
    net, batch = network(arch), images()
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in net.features)
    assert convolutions == {"vgg16": 11, "vgg19": 13}[arch], "nothing behind the last tap"
    before = batch.clone()
    with torch.no_grad():
        ours = net(batch)
        expected = tapped_by_hand(net, arch, batch)
    assert torch.equal(batch, before)
    assert len(ours) == len(LAYERS)
    for name, feature in zip(LAYERS, ours, strict=True):
        assert feature.min() == 0 and feature.max() > 0 and feature.dtype == torch.float32
        torch.testing.assert_close(feature, expected[name], rtol=1e-5, atol=1e-6)
    assert [tuple(f.shape[1:]) for f in ours] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]


def test_frozen_and_always_in_eval_mode() -> None:
    net = network()
    assert not any(p.requires_grad for p in net.parameters())
    outer = nn.Sequential(net)
    outer.train()
    assert outer.training and not any(module.training for module in net.modules())
    batch = images().requires_grad_()
    sum(feature.sum() for feature in net(batch)).backward()
    assert batch.grad is not None and batch.grad.abs().sum() > 0


def test_features_are_not_overwritten_by_later_layers() -> None:
    net = network()
    first = net(images())[0].clone()
    assert torch.equal(net(images())[0], first)


def test_random_weights_repeat_whatever_the_seed() -> None:
    torch.manual_seed(1)
    one = network().state_dict()
    torch.manual_seed(2)
    two = network().state_dict()
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    deepest = network("vgg19")(images())[-1]
    assert 0.01 < deepest.std() < 100  # the signal neither dies nor explodes on its way


def rms(net: PerceptualNetwork, batches: list[Tensor]) -> list[float]:
    """Over all images, positions and channels at once."""
    together = [torch.cat(parts).double() for parts in zip(*(net(batch) for batch in batches), strict=True)]
    return [float(feature.square().mean().sqrt()) for feature in together]


@pytest.mark.parametrize(("scale", "wanted"), [("unit", (1.0,) * 5), ("oxford", OXFORD_RMS)])
@torch.no_grad()
def test_calibration(scale: str, wanted: tuple[float, ...]) -> None:
    net = network(scale=scale)
    plain = rms(net, [images(3), images(1, seed=1)])
    batches = [images(3), images(1, seed=1)]
    net.calibrate(iter(batches))
    assert rms(net, batches) == pytest.approx(list(wanted), rel=1e-4)
    factor = net.scales.factor.clone()
    assert factor.tolist() == pytest.approx([w / r for w, r in zip(wanted, plain, strict=True)], rel=1e-4)
    net.calibrate(iter(batches))  # not on top of the former
    torch.testing.assert_close(net.scales.factor, factor)
    other = network(scale=scale)
    other.scales.load_state_dict(net.scales.state_dict())
    assert all(torch.equal(x, y) for x, y in zip(other(batches[0]), net(batches[0]), strict=True))


def test_no_calibration() -> None:
    net = network(scale="none")
    net.calibrate(iter([images()]))
    assert torch.equal(net.scales.factor, torch.ones(5))
    assert OXFORD_RMS == (40.7, 241, 450, 346, 85), "as published"


def test_weights_from_a_file(weights: Path) -> None:
    net = network(weights=str(weights))
    torch.manual_seed(5)
    expected = features("vgg16").state_dict()
    for key, value in net.features.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[key].half().float(), rtol=0, atol=0)


def refusal(arch: str, weights: object) -> str:
    with pytest.raises(UserError) as caught:
        network(arch, str(weights))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_of_another_network(weights: Path, tmp_path: Path) -> None:
    assert refusal("vgg19", weights).endswith("is missing or of another shape: not vgg19?")
    save_file({"features.0.weight": torch.zeros(64, 3, 5, 5)}, tmp_path / "a.safetensors")
    assert "features.0.weight (64, 3, 3, 3) is missing or of another shape" in refusal(
        "vgg16", tmp_path / "a.safetensors"
    )


def test_files_that_are_not_weights(weights: Path, tmp_path: Path) -> None:
    assert "none.safetensors: no such file" in refusal("vgg16", tmp_path / "none.safetensors")
    text, cut, other = tmp_path / "t.safetensors", tmp_path / "c.safetensors", tmp_path / "weights.pth"
    text.write_text("hello")
    cut.write_bytes(weights.read_bytes()[:100_000])
    torch.save([1, 2], other)
    assert f"{text}: not readable as weights" in refusal("vgg16", text)
    assert f"{cut}: not readable as weights" in refusal("vgg16", cut)
    assert f"{other}: not a .safetensors file" in refusal("vgg16", other)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's cache of downloads, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    torch.hub._hub_dir = None
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("arch", ["vgg16", "vgg19"])
def test_missing_imagenet_weights_name_the_command(cache: Path, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # torchvision's own registry of weights
    monkeypatch.setenv("TORCH_HOME", str(cache.parents[1]))
    with pytest.raises(UserError) as caught:
        perceptual.weights_path(PerceptualConfig(arch=arch))  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith(str(cache / f"{arch}-")) and "\n" not in message
    assert f"latentfuse weights fetch --arch {arch}" in message


def test_fetching_replaces_what_is_damaged(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the hash in the file's name, which torch compares for downloads alone."""
    content = b"weights"
    path = cache / f"vgg16-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    asked = []

    def download(url: str, to: str, hash_prefix: str) -> None:
        asked.append((url, hash_prefix))
        Path(to).write_bytes(content)

    monkeypatch.setattr(perceptual, "imagenet_url", lambda arch: f"https://somewhere/{path.name}")
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    path.write_bytes(content[:3])
    assert perceptual.fetch_weights("vgg16") == path and path.read_bytes() == content
    assert perceptual.fetch_weights("vgg16") == path, "this one is whole"
    assert asked == [(f"https://somewhere/{path.name}", path.stem[-8:])]


@pytest.mark.parametrize("modern", [False, True])
def test_imagenet_weights_from_the_cache(cache: Path, modern: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's files of VGG are in torch's format of before 1.6; a new upload would be in the present one."""
    monkeypatch.setattr(perceptual, "imagenet_url", lambda arch: f"https://example.org/{arch}-0.pth")
    torch.manual_seed(6)
    state = {f"features.{key}": value for key, value in features("vgg16").state_dict().items()}
    path = cache / "vgg16-0.pth"
    torch.save(state, path, _use_new_zipfile_serialization=modern)
    net = network(weights="imagenet")
    assert torch.equal(net.features[0].weight, state["features.0.weight"])  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[:1_000_000])
    assert f"{path}: not readable as weights" in refusal("vgg16", "imagenet")
    path.write_text("<html>not found</html>")
    assert f"{path}: not readable as weights" in refusal("vgg16", "imagenet")


def faces(count: int) -> Tensor:
    with zipfile.ZipFile(FACES) as archive:
        names = [name for name in sorted(archive.namelist()) if name.endswith(".jpg")][:count]
        return normalise(torch.stack([fit(decode(archive.read(name), name), 128) for name in names]))


@pytest.mark.skipif(not REAL.is_file(), reason="the real VGG-16 weights are not beside this checkout")
@torch.no_grad()
def test_real_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # with torchvision's own constructor, once
    net = network(weights=str(REAL))
    assert all(torch.isfinite(feature).all() for feature in net(images()))
    if FACES.is_file():  # these weights are Oxford's, for torchvision's input
        assert rms(net, [faces(8)]) == pytest.approx(list(OXFORD_RMS), rel=0.15)


@pytest.mark.skipif(not REAL.is_file(), reason="the real VGG-16 weights are not beside this checkout")
def test_real_weights_of_the_other_network() -> None:
    assert "not vgg19?" in refusal("vgg19", REAL)
