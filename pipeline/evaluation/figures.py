"""Figures of an evaluation: faces for people to judge, and the numbers that are easier to see than to read."""

from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from pipeline.config.schema import LAYERS
from pipeline.data.loading.loader import FaceImages
from pipeline.inference import fuse, pictures
from pipeline.inference.bundle import Bundle
from pipeline.measures.path import STEPS

SHOWN = 8


@torch.no_grad()
def figures(bundle: Bundle, dataset: FaceImages, result: dict[str, Any]) -> dict[str, Image]:
    """File name without ending -> picture, of the first faces and of `result`."""
    images = dataset.first(SHOWN).to(bundle.device)
    strips = [[a, *pictures.strip(bundle.model, a, b, 6), b] for a, b in zip(images[::2], images[1::2], strict=False)]
    elements = [f"element {n}" for n in range(1, bundle.elements + 1)]
    effects = np.array(result["effects"]["matrix"])
    drawn = {
        "reconstruction": pictures.tile([list(images), list(bundle.generate(bundle.encode(images)))]),
        "strips": pictures.tile(strips),
        "elements": fuse.grid(bundle, images[:1], images[1:2], 6),
        "effects": pictures.heat_map(effects, elements, LAYERS, "effect of flipping one element"),
    }
    if "path" in result:
        drawn["path"] = _path(result["path"]["curve"], elements)
    if "shapley" in result:
        parts = np.array(result["shapley"]["matrix"])
        drawn["shapley"] = pictures.heat_map(parts, elements, LAYERS, "part of each layer's change (Shapley)")
    if "half_way" in result["pose"]:
        drawn["pose"] = _pose(result["pose"])
    if "matrix" in result["factors"]:
        carried, names = np.array(result["factors"]["matrix"]), result["factors"]["names"]
        drawn["factors"] = pictures.heat_map(carried, elements, names, "how well an element tells a factor")
    return drawn


def _path(curve: list[list[float]], elements: list[str]) -> Image:
    lines = dict(zip(["all elements", *elements], curve, strict=True))
    places = np.linspace(0, 1, STEPS).tolist()
    return pictures.curves(places, lines, ("1 - lambda", "distance to A', that of B' = 1"), "the way from A to B")


def _pose(pose: dict[str, Any]) -> Image:
    middles = [(low + high) / 2 for low, high in zip(pose["edges"], pose["edges"][1:], strict=False)]
    lines = {name: pose["half_way"][name] for name in ("detour", "sharpness", "ghost")}
    return pictures.curves(middles, lines, ("difference of yaw", "at lambda = 0.5"), "pairs by difference of pose")
