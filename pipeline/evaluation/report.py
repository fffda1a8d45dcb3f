"""How good a bundle is on held-out faces: the evaluation, put together. Definitions are in docs/evaluation.md."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.common import version
from pipeline.common.devices import keep_freed_memory
from pipeline.common.errors import UserError
from pipeline.common.progress import progress
from pipeline.config.schema import LAYERS, EvaluationConfig
from pipeline.data.loading.loader import FaceImages
from pipeline.evaluation import sections
from pipeline.evaluation.factors import factor_table, factors
from pipeline.evaluation.figures import figures
from pipeline.evaluation.image_pass import ImagePass, image_pass
from pipeline.evaluation.output import reserved, show, write
from pipeline.evaluation.pairs import FacePairs
from pipeline.evaluation.pose import pose, yaw
from pipeline.evaluation.realism import FeatureExtractor, feature_extractor, realism
from pipeline.evaluation.region_effects import region_rows
from pipeline.evaluation.shapley import MOST_ELEMENTS
from pipeline.evaluation.statistics import summarised
from pipeline.evaluation.table import as_table
from pipeline.inference.bundle import Bundle
from pipeline.measures.distances import named
from pipeline.measures.effects import Rows, dead_elements
from pipeline.models import regions
from pipeline.models.perceptual import PerceptualNetwork

VERSION = 4
"""Of the definitions: raise it whenever the same bundle and faces give other numbers."""
QUICK = EvaluationConfig(
    faces=200, pairs=32, corner_pairs=0, half_way_pairs=200, train_images=200, classifier_faces=400
)
"""How much `evaluate --quick` measures."""


def evaluate(
    bundle: Bundle,
    shards: Path,
    out: Path,
    pairs: int | None = None,
    perceptual_weights: str | None = None,
    train: Path | None = None,
    run_dir: Path | None = None,
    quick: bool = False,
) -> dict[str, Any]:
    """Measure `bundle` on the images of `shards`; write numbers and figures to `out`, all of them or none.

    Args:
        shards: a split folder, usually `.../test`.
        pairs: pairs behind the effect matrix, paths in pixels and regions; None: as the bundle's configuration says.
        perceptual_weights: `imagenet`, `random` or a file; None: as the bundle's configuration says.
        train: the split folder of the training images; None: `train` beside `shards`, if there is one.
        quick: measure few images: a look, not a result.
        run_dir: also show numbers and figures in this run's TensorBoard.

    Returns:
        What `metrics.json` holds.

    Raises:
        UserError: if the shards cannot be read, the perceptual weights are not here, or `out` cannot be written; all of
            that before anything is measured.
    """
    dataset = FaceImages(shards, bundle.config.data)
    if len(dataset) < 2:
        raise UserError(f"{shards}: {len(dataset)} image; an evaluation needs at least 2")
    if run_dir is not None and not (run_dir / "config.yaml").is_file():
        raise UserError(f"--run {run_dir}: holds no run (no config.yaml); name the run folder of a training")
    if quick:
        config = bundle.config.model_copy(update={"evaluation": QUICK})
        bundle = Bundle(config, bundle.model, bundle.scales, bundle.trained)
    if bundle.device.type == "cpu":
        keep_freed_memory()
    training = _training_images(bundle, shards, train)
    perceptual = bundle.perceptual(perceptual_weights)
    faces = FacePairs(bundle, dataset, bundle.config.evaluation.faces)
    with reserved(out):
        result, rows = _measured(faces, training, perceptual, pairs)
        drawn = figures(faces, result)
        write(out, result, rows, drawn, as_table)
    if run_dir is not None:
        show(run_dir / "tensorboard" / "evaluate", result, drawn)
    return result


def _measured(
    faces: FacePairs, training: FaceImages | None, perceptual: PerceptualNetwork, pairs: int | None
) -> tuple[dict[str, Any], dict[str, Rows]]:
    """Every section, and the rows behind those that have some."""
    bundle, config = faces.bundle, faces.bundle.config.evaluation
    extractor = feature_extractor(perceptual, bundle.device)
    rows, found = _rows(faces, perceptual, extractor, pairs)
    if training is not None:
        learning = FacePairs(bundle, training, config.classifier_faces, trained=True)
        rows["detectability"] = sections.detectability_rows(learning, found.pictures, config.seed)
    result: dict[str, Any] = {
        "version": VERSION,
        "latentfuse": version.VERSION,
        "seed": config.seed,
        "asked": config.model_dump(mode="json") | ({"pairs": pairs} if pairs else {}),
        "bundle": bundle.trained,
        "shards": faces.dataset.content_hash,
        "image_size": bundle.image_size,
        "crop": bundle.config.data.crop,
        "train_shards": training.content_hash if training else None,
        "perceptual": named(perceptual),
        "layers": list(LAYERS),
    }
    for name, each in rows.items():
        result[name] = summarised(each, sections.STATISTICS[name], config.seed, pairs=name != sections.OF_FACES)
    count = result["effects"]["count"]
    result["exactness"] = {"count": count, **sections.exactness(faces, count)}
    result["regions"]["names"] = list(regions.NAMES)
    result["reconstruction"]["LPIPS_net"] = found.lpips_net
    result["effects"]["dead_elements"] = dead_elements(np.array(result["effects"]["matrix"]))
    features, unit = _training_features(training, extractor, bundle) if training else (None, 1.0)
    crowds = {name: each / unit for name, each in found.features.items()}
    if features is None:
        result["realism"] = {"left_out": "no training images: give their split folder with --train"}
    else:
        result["realism"] = {"net": extractor.name, **realism(features, crowds, config.seed)}
    result["pose"], rows_of_pose = pose(_turns(faces), _pose_tables(rows), crowds["fused"], features, config.seed)
    result["factors"] = _factors(faces, config.seed)
    return result, rows | rows_of_pose


def _rows(
    faces: FacePairs, perceptual: PerceptualNetwork, extractor: FeatureExtractor, pairs: int | None
) -> tuple[dict[str, Rows], ImagePass]:
    """The rows of every section but those of pose; and all that the pass over the images found."""
    config = faces.bundle.config.evaluation
    some, few, half = (min(n, len(faces)) for n in (pairs or config.pairs, config.corner_pairs, config.half_way_pairs))
    effects = sections.effect_rows(faces, perceptual, some)
    if not (np.isfinite(effects["moved"]).all() and (effects["whole"].mean(axis=0) > 0).all()):
        name = faces.dataset.name
        raise UserError(f"{name}: an effect is not a finite number: are its images alike, or the weights bad?")
    found = image_pass(faces, perceptual, extractor, half)
    rows = {
        "effects": effects,
        "reconstruction": found.reconstruction,
        **{sections.section_of(name): each for name, each in found.half_way.items()},
        "path_pixels": sections.path_rows(faces, None, some),
        "regions": region_rows(faces, some),
    }
    if few:
        rows["path"] = sections.path_rows(faces, perceptual, few)
    if few and faces.bundle.elements <= MOST_ELEMENTS:
        rows["shapley"] = sections.shapley_rows(faces, perceptual, few)
    return rows, found


def _training_images(bundle: Bundle, shards: Path, given: Path | None) -> FaceImages | None:
    beside = shards.absolute().parent / "train"
    if given is None and (not beside.is_dir() or beside == shards.absolute()):
        return None
    return FaceImages(given or beside, bundle.config.data)


@torch.no_grad()
def _training_features(training: FaceImages, extractor: FeatureExtractor, bundle: Bundle) -> tuple[Tensor, float]:
    """Features of a seeded choice of training images, (n, D) on the CPU in their unit; and the unit."""
    config = bundle.config.evaluation
    chosen = np.random.default_rng(config.seed).permutation(len(training))[: config.train_images].tolist()
    starts = range(0, len(chosen), config.batch_size)
    batches = (
        training.load_as_trained(chosen[start : start + config.batch_size]).to(bundle.device) for start in starts
    )
    features, unit = extractor.training_features(progress(batches, "features", len(chosen), "training images", len))
    return features / unit, unit


def _turns(faces: FacePairs) -> NDArray[np.float64]:
    """Of every pair, how differently A and B are turned; NaN where unknown."""
    yaws = np.array([yaw(faces.metadata(position).get("landmarks") or {}) for position in range(len(faces))])
    turns: NDArray[np.float64] = np.abs(yaws - np.roll(yaws, 1))
    return turns


def _pose_tables(rows: dict[str, Rows]) -> dict[str, Rows]:
    """Rows of pairs that pose may matter to. Reconstruction is the mean of A's and B's."""
    path = rows["path_pixels"]
    return {
        "reconstruction": {name: (each + np.roll(each, 1)) / 2 for name, each in rows["reconstruction"].items()},
        "half_way": rows["half_way"],
        "path_pixels": {name: path[name] for name in ("spearman_all", "largest_step_all")},
    }


@torch.no_grad()
def _factors(faces: FacePairs, seed: int) -> dict[str, Any]:
    names, table = factor_table([faces.metadata(position) for position in range(len(faces))])
    if not names:
        return {"left_out": "the faces are not painted ones, or too few: their factors are not known"}
    bundle = faces.bundle
    z = torch.cat([bundle.encode(faces.images(positions)).cpu() for positions in faces.batches(len(faces))])
    parts = z.split(bundle.model.sizes, dim=1)
    return factors([part.flatten(1).double().numpy() for part in parts], names, table, seed)
