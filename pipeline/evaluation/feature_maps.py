"""What the perceptual network sees in a photograph, layer by layer."""

from pathlib import Path

import torch
from PIL.Image import Image

from pipeline.config.schema import LAYERS, DataConfig, PerceptualConfig
from pipeline.data import images
from pipeline.inference import pictures
from pipeline.measures.distances import named
from pipeline.models.perceptual import PerceptualNetwork

STRONGEST = 7


@torch.no_grad()
def feature_maps(photograph: Path, config: PerceptualConfig) -> Image:
    """A row per tapped layer: the mean over its channels, then its strongest channels by their mean.

    Raises:
        UserError: if the photograph or the weights cannot be read.
    """
    network = PerceptualNetwork(config)
    image = images.fit(images.read(photograph), DataConfig().image_size)
    rows = []
    for layer, (features,) in zip(LAYERS, network(images.normalise(image)[None]), strict=True):
        strongest = features.mean(dim=(1, 2)).argsort(descending=True)[:STRONGEST].tolist()
        maps = [(f"channel {channel}", features[channel]) for channel in strongest]
        size = " x ".join(map(str, features.shape))
        rows.append((f"{layer}\n{size}", [("mean", features.mean(dim=0)), *maps]))
    return pictures.maps(rows, f"{photograph.name}: after ReLU, {named(network)}")
