"""The sections of an evaluation whose numbers are statistics of means over images or pairs."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from pipeline.evaluation import detectability, mixes, region_effects, shapley
from pipeline.evaluation.image_pass import FLOOR, PHOTOGRAPHS, training_pictures
from pipeline.evaluation.pairs import FacePairs
from pipeline.evaluation.pose import pose_statistics
from pipeline.evaluation.sharing import share
from pipeline.evaluation.statistics import Statistic, as_means, as_rows
from pipeline.measures import effects, path
from pipeline.measures.distances import Point, perceptual_point, pixel_point
from pipeline.measures.effects import Array, Rows
from pipeline.models.perceptual import PerceptualNetwork

HALF_WAY = (*mixes.FUSED, *mixes.BASELINES)
"""What is measured between two faces; the first, C at lambda = 0.5, has the section `half_way`."""
STATISTICS: dict[str, Statistic] = {
    "reconstruction": as_means,
    "half_way": as_means,
    **{f"half_way.{name}": as_means for name in HALF_WAY[1:]},
    "detectability": as_means,
    "effects": effects.effect_statistics,
    "shapley": shapley.shapley_statistics,
    "path": as_means,
    "path_pixels": as_means,
    "regions": region_effects.region_statistics,
    **{f"pose.{table}": pose_statistics for table in ("reconstruction", "half_way", "path_pixels")},
}
"""How the numbers of each section come from the means of its rows."""


def section_of(name: str) -> str:
    """The section of one of `HALF_WAY`."""
    return "half_way" if name == HALF_WAY[0] else f"half_way.{name}"


OF_FACES = "reconstruction"
"""The section whose rows are of faces; the others' are of pairs."""


def effect_rows(faces: FacePairs, perceptual: PerceptualNetwork, pairs: int) -> Rows:
    """moved (n, N, L) and whole (n, L), of `effects.flips`."""
    bundle = faces.bundle

    def measure(_: Tensor, z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
        moved, whole = effects.flips(bundle.fuse, perceptual, z_a, z_b, bundle.elements)
        return {"moved": moved, "whole": whole}

    return _rows(faces, pairs, "effects", measure)


def shapley_rows(faces: FacePairs, perceptual: PerceptualNetwork, pairs: int) -> Rows:
    """values (n, N, L) and whole (n, L), the values of all corners and the worth of the last."""
    bundle = faces.bundle

    def measure(_: Tensor, z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
        worth = shapley.corner_distances(bundle.fuse, perceptual, z_a, z_b, bundle.elements).double()
        return {"values": shapley.shapley_values(worth), "whole": worth[:, -1]}

    return _rows(faces, pairs, "corners", measure)


def path_rows(faces: FacePairs, perceptual: PerceptualNetwork | None, pairs: int) -> Rows:
    """Of `path.path_columns`, measured by the perceptual network, or by pixels where there is none."""
    bundle, name = faces.bundle, "paths" if perceptual else "paths in pixels"

    def point(images: Tensor) -> Point:
        return perceptual_point(perceptual(images)) if perceptual else pixel_point(images)

    lambdas = path.lines(bundle.elements)

    def measure(a: Tensor, z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
        return path.path_columns(path.travelled(bundle.fuse, point, a, z_a, z_b, lambdas))

    return _rows(faces, pairs, name, measure)


def _rows(
    faces: FacePairs, pairs: int, name: str, measure: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]
) -> Rows:
    """What `measure` gives for A, Z_A and Z_B of the first pairs, a batch at a time."""

    def of_batch(positions: range) -> dict[str, Tensor]:
        return {each: values.cpu() for each, values in measure(*faces.latent_pairs(positions)).items()}

    return as_rows(faces.measured(pairs, name, of_batch))


def detectability_rows(
    training: FacePairs, pictures: dict[str, Tensor], seed: int, seeds: int = detectability.SEEDS
) -> Rows:
    """Of every mix in `pictures`, `detectability.told_apart` from faces of its kind: photographs for what is made of
    photographs, else reconstructions. C at lambda = 0.5 gets `seeds` classifiers, the others one.

    Args:
        training: faces that classifiers learn from.
        pictures: of the test pairs, `ImagePass.pictures`.
    """
    learned = training_pictures(training)
    names = [name for name in learned if name in pictures and name not in (FLOOR, PHOTOGRAPHS)]

    def placed(classifier: tuple[str, int]) -> Array:
        name, number = classifier
        faces = PHOTOGRAPHS if name in ("mean_photographs", "morph") else FLOOR
        pairs = ((each[faces], each[name]) for each in (learned, pictures))
        (of_faces, mixed), (test_faces, test_mixed) = pairs
        return detectability.told_apart(
            (of_faces, test_faces), (mixed, test_mixed), seed + number, training.bundle.device
        )

    classifiers = [(name, number) for name in names for number in range(seeds if name == "fused" else 1)]
    found = share(training.ranks, placed, classifiers, "detectability", "classifiers")
    of_names = {name: [each for (of, _), each in zip(classifiers, found, strict=True) if of == name] for name in names}
    return {name: np.mean(each, axis=0) for name, each in of_names.items()}


def exactness(faces: FacePairs, pairs: int) -> dict[str, float]:
    """Largest difference of a fused image at lambda = 1 from A', at lambda = 0 from B'; 0 means equal bits."""
    bundle = faces.bundle

    def of_batch(positions: range) -> dict[str, float]:
        a, b = faces.pairs(positions)
        ends = (("lambda_1", 1.0, a), ("lambda_0", 0.0, b))
        differences = {
            key: bundle.fuse(a, b, value) - bundle.generate(bundle.encode(image)) for key, value, image in ends
        }
        return {key: float(each.abs().max()) for key, each in differences.items()}

    found = faces.measured(pairs, "exactness", of_batch)
    return {key: max(each[key] for each in found) for key in ("lambda_1", "lambda_0")}
