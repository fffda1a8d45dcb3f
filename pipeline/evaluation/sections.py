"""The sections of an evaluation whose numbers are statistics of means over images or pairs."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pipeline.common.progress import progress
from pipeline.evaluation import areas, shapley
from pipeline.evaluation.faces import Faces
from pipeline.evaluation.pose import pose_statistics
from pipeline.evaluation.statistics import Statistic, as_means
from pipeline.inference.bundle import Bundle
from pipeline.measures import effects, path
from pipeline.measures.distances import Point, perceptual_point, pixel_point
from pipeline.measures.rows import Rows
from pipeline.models.perceptual import PerceptualNetwork

STATISTICS: dict[str, Statistic] = {
    "reconstruction": as_means,
    "half_way": as_means,
    "effects": effects.effect_statistics,
    "shapley": shapley.shapley_statistics,
    "path": as_means,
    "path_pixels": as_means,
    "regions": areas.area_statistics,
    **{f"pose.{table}": pose_statistics for table in ("reconstruction", "half_way", "path_pixels")},
}
"""How the numbers of each section come from the means of its rows."""
OF_FACES = "reconstruction"
"""The section whose rows are of faces; the others' are of pairs."""
Latents = Iterator[tuple[Tensor, Tensor, Tensor]]


def effect_rows(faces: Faces, perceptual: PerceptualNetwork, pairs: int) -> Rows:
    """moved (n, N, L) and whole (n, L), of `effects.flips`."""
    bundle = faces.bundle
    batches = (
        effects.flips(bundle.model, perceptual, z_a, z_b, bundle.elements)
        for _, z_a, z_b in _shown(faces, pairs, "effects")
    )
    return _rows({"moved": moved, "whole": whole} for moved, whole in batches)


def shapley_rows(faces: Faces, perceptual: PerceptualNetwork, pairs: int) -> Rows:
    """values (n, N, L) and whole (n, L), the values of all corners and the worth of the last."""

    def batches() -> Iterator[dict[str, Tensor]]:
        elements = faces.bundle.elements
        for _, z_a, z_b in _shown(faces, pairs, "corners"):
            worth = shapley.corner_distances(faces.bundle.model, perceptual, z_a, z_b, elements).double()
            yield {"values": shapley.shapley_values(worth), "whole": worth[:, -1]}

    return _rows(batches())


def path_rows(faces: Faces, perceptual: PerceptualNetwork, pairs: int) -> Rows:
    """Of `path.path_columns`, measured by the perceptual network."""
    return _path_rows(faces, lambda images: perceptual_point(perceptual(images)), pairs, "paths")


def path_pixel_rows(faces: Faces, pairs: int) -> Rows:
    """The same, measured by pixels."""
    return _path_rows(faces, pixel_point, pairs, "paths in pixels")


def _path_rows(faces: Faces, measure: Callable[[Tensor], Point], pairs: int, name: str) -> Rows:
    lambdas, model = path.lines(faces.bundle.elements), faces.bundle.model
    return _rows(
        path.path_columns(path.travelled(model, measure, a, z_a, z_b, lambdas))
        for a, z_a, z_b in _shown(faces, pairs, name)
    )


def region_rows(faces: Faces, pairs: int) -> Rows:
    """Of `areas.area_rows`, with all of B inside of each region."""
    nothing_of_a = torch.zeros(faces.bundle.elements, device=faces.bundle.device)

    def fuse(z_a: Tensor, z_b: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        return faces.bundle.model.fuse_region(z_a, z_b, nothing_of_a, masks)

    return areas.area_rows(faces, fuse, pairs)


def exactness(bundle: Bundle, faces: Faces, pairs: int) -> dict[str, float]:
    """Largest difference of a fused image at lambda = 1 from A', at lambda = 0 from B'; 0 means equal bits."""
    largest = {"lambda_1": 0.0, "lambda_0": 0.0}
    for a, b in faces.pairs(pairs):
        for key, value, image in (("lambda_1", 1.0, a), ("lambda_0", 0.0, b)):
            difference = bundle.fuse(a, b, value) - bundle.generate(bundle.encode(image))
            largest[key] = max(largest[key], float(difference.abs().max()))
    return largest


def _shown(faces: Faces, pairs: int, name: str) -> Latents:
    return progress(faces.latent_pairs(pairs), name, -(-pairs // faces.batch_size))


def _rows(batches: Iterator[dict[str, Tensor]]) -> Rows:
    gathered = list(batches)
    return {name: torch.cat([each[name] for each in gathered]).double().cpu().numpy() for name in gathered[0]}
