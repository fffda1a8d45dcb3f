"""Perceptual network P: the frozen front of a VGG and its tapped layers (docs/method.md, eq. 4 and 5).

The scale of the features decides how much the perceptual terms weigh (docs/method.md, "The scale of the features"),
so every tapped layer carries a factor, measured once on real images.

torchvision.models takes a second to import, and a bundle needs only `FeatureScales`: it is imported where it is used.
"""

import pickle
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.common import files
from pipeline.common.errors import UserError
from pipeline.config.schema import LAYERS, Arch, PerceptualConfig

STACKS = {"vgg16": "D", "vgg19": "E"}
"""torchvision's letters for the convolutional part."""
TAPS = {"vgg16": (0, 5, 10, 17, 24), "vgg19": (0, 5, 10, 19, 28)}
"""Positions of conv1_1 .. conv5_1 in torchvision's `features`; each is followed by its ReLU, which is tapped."""
OXFORD_RMS = (40.7, 241.0, 450.0, 346.0, 85.0)
"""RMS after ReLU of Oxford's VGG-16 on real faces, conv1_1 .. conv5_1."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RANDOM_SEED = 0


class FeatureScales(nn.Module):
    """The factor of each tapped layer, (L,): all that a checkpoint keeps of P."""

    factor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(len(LAYERS)))


class PerceptualNetwork(nn.Module):
    """P: images (B, 3, H, W) in [-1, 1] -> features after ReLU of conv1_1 .. conv5_1, times each layer's factor.

    Frozen and always in eval mode. `scales` holds ones until `calibrate` or a checkpoint sets it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: PerceptualConfig) -> None:
        from torchvision.models import vgg

        super().__init__()
        self.config = config
        taps = TAPS[config.arch]
        features = vgg.make_layers(vgg.cfgs[STACKS[config.arch]], batch_norm=False)[: taps[-1] + 2]
        self.features = nn.ModuleList(features)
        self.taps = {tap + 1 for tap in taps}
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))
        self.scales = FeatureScales()
        if config.weights == "random":
            self._initialise()
        else:
            _load(self.features, weights_path(config), config.arch)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "PerceptualNetwork":
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = ((images + 1) / 2 - self.mean) / self.std
        tapped: list[Tensor] = []
        for position, layer in enumerate(self.features):
            x = layer(x)
            if position in self.taps:
                tapped.append(
                    x * self.scales.factor[len(tapped), None]
                )  # (1,), not (): float16 features become float32
        return tapped

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Set the factors so that the RMS of each layer on these real images is what the configuration asks for.

        Args:
            batches: each (B, 3, H, W) in [-1, 1].
        """
        if self.config.feature_scale == "none":
            return
        self.scales.factor.fill_(1)
        squares, count = torch.zeros(len(LAYERS), dtype=torch.float64), 0
        for images in batches:
            squares += torch.stack([f.double().square().mean(dim=(1, 2, 3)).sum() for f in self(images)]).cpu()
            count += len(images)
        rms = (squares / count).sqrt()
        wanted = torch.tensor(OXFORD_RMS if self.config.feature_scale == "oxford" else [1.0] * len(LAYERS))
        self.scales.factor.copy_(wanted / rms)

    def _initialise(self) -> None:
        generator = torch.Generator().manual_seed(RANDOM_SEED)
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                assert layer.bias is not None, "VGG's convolutions have one"
                nn.init.kaiming_normal_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)


def weights_path(config: PerceptualConfig) -> Path:
    """The file that `config.weights` means: a path as it stands, or torchvision's file in torch's cache.

    Raises:
        UserError: if it is not there, with the command that fetches it.
    """
    if config.weights == "imagenet":
        path = _in_torch_cache(imagenet_url(config.arch))
        if not path.is_file():
            raise UserError(
                f"{path}: the ImageNet weights of {config.arch} are not there; run "
                f"`latentfuse weights fetch --arch {config.arch}` on a machine with internet that shares this folder "
                "(TORCH_HOME moves it), or set perceptual.weights to a .safetensors file"
            )
        return path
    path = Path(config.weights)
    if not path.is_file():
        raise UserError(f"perceptual.weights: {path}: no such file (imagenet, random, or a .safetensors file)")
    if path.suffix != ".safetensors":
        raise UserError(
            f"perceptual.weights: {path}: not a .safetensors file (imagenet and random are the other choices)"
        )
    return path


def imagenet_url(arch: str) -> str:
    """Where torchvision publishes its ImageNet weights of `arch`."""
    from torchvision.models import get_model_weights

    url: str = get_model_weights(arch).IMAGENET1K_V1.url
    return url


def fetch_weights(arch: Arch) -> Path:
    """Download torchvision's ImageNet weights of `arch` into torch's cache, checked against the hash in their name.

    Raises:
        UserError: if the download fails; nothing is left half-written.
    """
    url = imagenet_url(arch)
    path = _in_torch_cache(url)
    begins_with = path.stem.rsplit("-", 1)[-1]  # of its SHA-256, as torchvision names its files
    if not path.is_file() or not files.sha256(path).startswith(begins_with):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=begins_with)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{url}: could not be fetched: {error}; run this where there is internet") from None
    return path


def _in_torch_cache(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def _load(features: nn.ModuleList, path: Path, arch: str) -> None:
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)  # VGG's file is too old for mmap
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError):
        raise UserError(f"{path}: not readable as weights, or cut short; fetch it again") from None
    wanted = features.state_dict()
    given = {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}
    for key, tensor in wanted.items():
        if key not in given or given[key].shape != tensor.shape:
            raise UserError(f"{path}: features.{key} {tuple(tensor.shape)} is missing or of another shape: not {arch}?")
    features.load_state_dict({key: given[key].float() for key in wanted})
