"""Figures of an evaluation: faces for people to judge, and the numbers that are easier to see than to read."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from pipeline.config.schema import LAYERS, DataConfig, PerceptualConfig
from pipeline.data import images as photographs
from pipeline.evaluation import mixes
from pipeline.evaluation.pairs import FacePairs
from pipeline.inference import charts, fuse, pictures
from pipeline.measures.distances import named
from pipeline.measures.path import STEPS
from pipeline.models.elements import element_labels, element_names
from pipeline.models.perceptual import PerceptualNetwork

SHOWN = 8
"""Test faces in the figures."""
STRIP = 6
"""Fused images from A to B."""
STRONGEST = 7
"""Channels of each layer that `feature_maps` shows."""


@torch.no_grad()
def figures(faces: FacePairs, result: dict[str, Any]) -> dict[str, Image]:
    """File name without ending -> picture, of some faces and of `result`."""
    bundle, dataset = faces.bundle, faces.dataset
    images = dataset.first(SHOWN).to(bundle.device)
    strips = [[a, *pictures.strip(bundle, a, b, STRIP), b] for a, b in zip(images[::2], images[1::2], strict=False)]
    back = bundle.generate(bundle.encode(images))
    elements = element_labels(element_names(bundle.config.model))
    effects = np.array(result["effects"]["matrix"])
    drawn = {
        "reconstruction": pictures.labelled([list(images), list(back)], labels=["A", "A'"]),
        "strips": pictures.labelled(strips, ["A", *pictures.falling_headings(STRIP), "B"]),
        "half_way": _half_way(faces),
        "elements": fuse.grid(bundle, images[:1], images[1:2], fuse.GRID_COLUMNS),
        "effects": charts.heat_map(effects, elements, LAYERS, "effect of flipping one element"),
    }
    if "path" in result:
        drawn["path"] = _path(result["path"]["curve"], elements)
    if "shapley" in result:
        parts = np.array(result["shapley"]["matrix"])
        drawn["shapley"] = charts.heat_map(parts, elements, LAYERS, "part of each layer's change (Shapley)")
    if "half_way" in result["pose"]:
        drawn["pose"] = _pose(result["pose"])
    if "matrix" in result["factors"]:
        carried, names = np.array(result["factors"]["matrix"]), result["factors"]["names"]
        drawn["factors"] = charts.heat_map(carried, elements, names, "how well an element tells a factor")
    return drawn


def _half_way(faces: FacePairs) -> Image:
    """Pairs in a row each: both faces, their reconstructions, what is fused, and what needs no training."""
    pairs = range(min(SHOWN, len(faces)))
    images = faces.images(range(-1, pairs.stop))
    z = faces.bundle.encode(images)
    a, b, back = images[1:], images[:-1], faces.bundle.generate(z)
    fused = mixes.fused_and_means(faces.bundle, z[1:], z[:-1], (back[1:], back[:-1]))
    baselines = mixes.of_photographs(a, b, mixes.landmark_pairs(faces, pairs))
    columns = {
        "A": a,
        "A'": back[1:],
        "lambda 0.75": fused["fused_75"],
        "0.5": fused["fused"],
        "0.25": fused["fused_25"],
        "B'": back[:-1],
        "B": b,
        "mean of A, B": baselines["mean_photographs"],
        **({"morph of A, B": baselines["morph"]} if "morph" in baselines else {}),
    }
    return pictures.labelled(list(zip(*columns.values(), strict=True)), list(columns))


def _path(curve: list[list[float]], elements: list[str]) -> Image:
    lines = dict(zip(["all elements", *elements], curve, strict=True))
    falling = np.linspace(0, 1, STEPS).tolist()
    return charts.curves(falling, lines, ("1 - lambda", "distance to A', that of B' = 1"), "the way from A to B")


def _pose(pose: dict[str, Any]) -> Image:
    middles = [(low + high) / 2 for low, high in zip(pose["edges"], pose["edges"][1:], strict=False)]
    lines = {name: pose["half_way"][name] for name in ("detour", "sharpness", "ghost")}
    return charts.curves(middles, lines, ("difference of yaw", "at lambda = 0.5"), "pairs by difference of pose")


@torch.no_grad()
def feature_maps(photograph: Path, config: PerceptualConfig) -> Image:
    """What the perceptual network gives for a photograph: a row per layer, the mean and the strongest channels.

    Raises:
        UserError: if the photograph or the weights cannot be read.
    """
    network = PerceptualNetwork(config)
    image = photographs.fit(photographs.read(photograph), DataConfig().image_size)
    rows = []
    for layer, (features,) in zip(LAYERS, network(photographs.normalise(image)[None]), strict=True):
        strongest = features.mean(dim=(1, 2)).argsort(descending=True)[:STRONGEST].tolist()
        maps = [(f"channel {channel}", features[channel]) for channel in strongest]
        size = " x ".join(map(str, features.shape))
        rows.append((f"{layer}\n{size}", [("mean", features.mean(dim=0)), *maps]))
    return charts.maps(rows, f"{photograph.name}: after ReLU, {named(network)}")
