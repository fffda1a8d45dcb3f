"""How good a bundle is on held-out faces: the evaluation, put together. Definitions are in docs/evaluation.md."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from pipeline.common import version
from pipeline.common.devices import keep_freed_memory
from pipeline.common.errors import UserError
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
from pipeline.evaluation.sharing import Alone, Ranks
from pipeline.evaluation.statistics import count, summarised
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


class Measured(NamedTuple):
    """What every rank knows once all is measured."""

    rows: dict[str, Rows]
    """Of every section but those of pose."""
    found: ImagePass
    exactness: dict[str, float]
    latents: Tensor | None
    """Of every face, (n, C, S/32, S/32) on the CPU, where factors are known."""
    training_features: Tensor | None
    """(n, D) in the unit of all features."""
    unit: float


def evaluate(
    bundle: Bundle,
    shards: Path,
    out: Path,
    pairs: int | None = None,
    perceptual_weights: str | None = None,
    train: Path | None = None,
    run_dir: Path | None = None,
    quick: bool = False,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Measure `bundle` on the images of `shards`; write numbers and figures to `out`, all of them or none.

    Args:
        shards: a split folder, usually `.../test`.
        pairs: pairs behind the effect matrix, paths in pixels and regions; None: as the bundle's configuration says.
        perceptual_weights: `imagenet`, `random` or a file; None: as the bundle's configuration says.
        train: the split folder of the training images; None: `train` beside `shards`, if there is one.
        quick: measure few images: a look, not a result.
        run_dir: also show numbers and figures in this run's TensorBoard.
        ranks: the processes that share the work, each with the same bundle on its device; all of them call this, and
            rank 0 alone computes statistics and writes. None: this process does everything.

    Returns:
        What `metrics.json` holds.

    Raises:
        UserError: if the shards cannot be read, the perceptual weights are not here, or `out` cannot be written; all of
            that before anything is measured.
    """
    ranks = ranks or Alone()
    if quick:
        config = bundle.config.model_copy(update={"evaluation": QUICK})
        bundle = Bundle(config, bundle.model, bundle.scales, bundle.trained)
    dataset, training, perceptual = ranks.together(lambda: _opened(bundle, shards, train, run_dir, perceptual_weights))
    _check_alike(bundle, dataset, training, ranks)
    faces = FacePairs(bundle, dataset, bundle.config.evaluation.faces, ranks=ranks)
    drawn: dict[str, Image] = {}
    with ExitStack() as stack:
        ranks.on_main(lambda: stack.enter_context(reserved(out)))
        measured = _measured(faces, training, perceptual, pairs)

        def written() -> dict[str, Any]:
            result, rows = _result(faces, training, perceptual, pairs, measured)
            drawn.update(figures(faces, result))
            write(out, result, rows, drawn, as_table)
            return result

        result = ranks.on_main(written)
    if run_dir is not None:
        ranks.on_main(lambda: show(run_dir / "tensorboard" / "evaluate", result, drawn))
    return result


def _opened(
    bundle: Bundle, shards: Path, train: Path | None, run_dir: Path | None, perceptual_weights: str | None
) -> tuple[FaceImages, FaceImages | None, PerceptualNetwork]:
    """Test images, training images if there are any, and the perceptual network."""
    dataset = FaceImages(shards, bundle.config.data)
    if len(dataset) < 2:
        raise UserError(f"{shards}: {len(dataset)} image; an evaluation needs at least 2")
    if run_dir is not None and not (run_dir / "config.yaml").is_file():
        raise UserError(f"--run {run_dir}: holds no run (no config.yaml); name the run folder of a training")
    if bundle.device.type == "cpu":
        keep_freed_memory()
    return dataset, _training_images(bundle, shards, train), bundle.perceptual(perceptual_weights)


def _check_alike(bundle: Bundle, dataset: FaceImages, training: FaceImages | None, ranks: Ranks) -> None:
    """Raises UserError where a rank has another bundle or other images than rank 0, as on a disk of its own."""
    mine = {
        "the bundle": bundle.trained,
        dataset.name: dataset.content_hash,
        "the training images": training.content_hash if training else None,
    }
    expected = ranks.on_main(lambda: list(mine.values()))

    def check() -> None:
        for (name, value), other in zip(mine.items(), expected, strict=True):
            if value != other:
                raise UserError(f"{name}: not what rank 0 has there; bring this node's up to date")

    ranks.together(check)


def _measured(
    faces: FacePairs, training: FaceImages | None, perceptual: PerceptualNetwork, pairs: int | None
) -> Measured:
    """All that the ranks share."""
    bundle, config = faces.bundle, faces.bundle.config.evaluation
    extractor = feature_extractor(perceptual, bundle.device)
    rows, found = _rows(faces, perceptual, extractor, pairs)
    features, unit = None, 1.0
    if training is not None:
        learning = FacePairs(bundle, training, config.classifier_faces, trained=True, ranks=faces.ranks)
        rows["detectability"] = sections.detectability_rows(learning, found.pictures, config.seed)
        compared = FacePairs(bundle, training, config.train_images, trained=True, ranks=faces.ranks)
        features, unit = _training_features(compared, extractor)
    exactness = sections.exactness(faces, count(rows["effects"]))
    return Measured(rows, found, exactness, _latents(faces) if _known_factors(faces)[0] else None, features, unit)


def _result(
    faces: FacePairs,
    training: FaceImages | None,
    perceptual: PerceptualNetwork,
    pairs: int | None,
    measured: Measured,
) -> tuple[dict[str, Any], dict[str, Rows]]:
    """Every section, and the rows behind those that have some."""
    bundle, config = faces.bundle, faces.bundle.config.evaluation
    rows, found = measured.rows, measured.found
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
    result["exactness"] = {"count": result["effects"]["count"], **measured.exactness}
    result["regions"]["names"] = list(regions.NAMES)
    result["reconstruction"]["LPIPS_net"] = found.lpips_net
    result["effects"]["dead_elements"] = dead_elements(np.array(result["effects"]["matrix"]))
    features = measured.training_features
    crowds = {name: each / measured.unit for name, each in found.features.items()}
    if features is None:
        result["realism"] = {"left_out": "no training images: give their split folder with --train"}
    else:
        net = feature_extractor(perceptual, bundle.device).name
        result["realism"] = {"net": net, **realism(features, crowds, config.seed)}
    result["pose"], rows_of_pose = pose(_turns(faces), _pose_tables(rows), crowds["fused"], features, config.seed)
    result["factors"] = _factors_section(faces, measured.latents)
    return result, rows | rows_of_pose


def _rows(
    faces: FacePairs, perceptual: PerceptualNetwork, extractor: FeatureExtractor, pairs: int | None
) -> tuple[dict[str, Rows], ImagePass]:
    """The rows of every section but detectability's and those of pose; and all that the pass over the images found."""
    config = faces.bundle.config.evaluation
    some, few, half = (min(n, len(faces)) for n in (pairs or config.pairs, config.corner_pairs, config.half_way_pairs))
    effects = sections.effect_rows(faces, perceptual, some)
    faces.ranks.together(lambda: _check_effects(effects, faces.dataset.name))
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


def _check_effects(effects: Rows, name: str) -> None:
    if not (np.isfinite(effects["moved"]).all() and (effects["whole"].mean(axis=0) > 0).all()):
        raise UserError(f"{name}: an effect is not a finite number: are its images alike, or the weights bad?")


def _training_images(bundle: Bundle, shards: Path, given: Path | None) -> FaceImages | None:
    beside = shards.absolute().parent / "train"
    if given is None and (not beside.is_dir() or beside == shards.absolute()):
        return None
    return FaceImages(given or beside, bundle.config.data)


@torch.no_grad()
def _training_features(training: FacePairs, extractor: FeatureExtractor) -> tuple[Tensor, float]:
    """Features of training images, (n, D) on the CPU in their unit; and the unit."""
    batches = training.measured(
        len(training), "training images", lambda positions: extractor.of_training(training.images(positions))
    )
    unit = extractor.unit([squares for _, squares in batches])
    return torch.cat([features for features, _ in batches]) / unit, unit


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


def _known_factors(faces: FacePairs) -> tuple[list[str], NDArray[np.bool_]]:
    """Names of the factors that can be probed, none unless the faces are painted; and which face has which."""
    return factor_table([faces.metadata(position) for position in range(len(faces))])


@torch.no_grad()
def _latents(faces: FacePairs) -> Tensor:
    return torch.cat(
        faces.measured(len(faces), "latents", lambda positions: faces.bundle.encode(faces.images(positions)).cpu())
    )


def _factors_section(faces: FacePairs, latents: Tensor | None) -> dict[str, Any]:
    if latents is None:
        return {"left_out": "the faces are not painted ones, or too few: their factors are not known"}
    parts = latents.split(faces.bundle.model.sizes, dim=1)
    seed = faces.bundle.config.evaluation.seed
    return factors([part.flatten(1).double().numpy() for part in parts], *_known_factors(faces), seed)
