"""How good a bundle is on held-out faces: numbers as JSON and Markdown, and figures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from pipeline import files, fuse, pictures
from pipeline.bundle import Bundle
from pipeline.config import LAYERS
from pipeline.data.loader import FaceImages
from pipeline.errors import UserError
from pipeline.evaluation.effects import effect_matrix, own_shares
from pipeline.models.autoencoder import rolled
from pipeline.progress import progress

DATA_RANGE = 2.0
"""Images are in [-1, 1]."""
SHOWN = 8


def evaluate(
    bundle: Bundle, shards: Path, out: Path, pairs: int | None = None, perceptual_weights: str | None = None
) -> dict[str, Any]:
    """Measure `bundle` on the images of `shards`; write `metrics.json`, `metrics.md` and figures to `out`.

    Args:
        shards: a split folder, usually `.../test`.
        pairs: pairs behind the effect matrix; None: as the bundle's configuration says.
        perceptual_weights: `imagenet`, `random` or a file; None: as the bundle's configuration says.

    Returns:
        What `metrics.json` holds.

    Raises:
        UserError: if the shards cannot be read, or the perceptual weights are not here.
    """
    dataset = FaceImages(shards, bundle.config.data)
    if len(dataset) < 2:
        raise UserError(f"{shards}: {len(dataset)} image; an evaluation needs at least 2")
    pairs = min(pairs or bundle.config.evaluation.pairs, len(dataset))
    perceptual = bundle.perceptual(perceptual_weights)
    effects = effect_matrix(bundle.model, perceptual, _batches(bundle, dataset, pairs), bundle.elements)
    if not torch.isfinite(effects).all():
        raise UserError(f"{shards}: an effect is not a finite number: are its images alike, or the weights bad?")
    result: dict[str, Any] = {
        "bundle": bundle.trained,
        "shards": dataset.reader.index.manifest.content_hash,
        "reconstruction": {"images": len(dataset), **_reconstruction(bundle, dataset)},
        "exactness": {"pairs": pairs, **_exactness(bundle, _batches(bundle, dataset, pairs))},
        "effects": {
            "pairs": pairs,
            "perceptual": f"{perceptual.config.arch}, {Path(perceptual.config.weights).name}",
            "layers": list(LAYERS),
            "matrix": _rounded(effects),
            "weakest": round(float(effects.amax(dim=1).min()), 4),
        },
    }
    if bundle.elements == len(LAYERS):
        shares = own_shares(effects)
        result["effects"] |= {"own_shares": _rounded(shares), "own_share": round(float(shares.mean()), 4)}
    _write(bundle, dataset, effects, result, out)
    return result


def as_table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    reconstruction, effects, exactness = result["reconstruction"], result["effects"], result["exactness"]
    lines = ["| metric | value |", "|---|---|"]
    lines += [f"| reconstruction {name} | {reconstruction[name]:.4f} |" for name in ("L1", "MSE", "PSNR", "SSIM")]
    lines += [
        f"| {which} | {'equal bits' if exactness[key] == 0 else f'largest difference {exactness[key]:.3g}'} |"
        for which, key in (("lambda = 1 against A'", "lambda_1"), ("lambda = 0 against B'", "lambda_0"))
    ]
    lines += [f"| weakest element's largest effect | {effects['weakest']:.3f} |"]
    if "own_share" in effects:
        lines += [f"| own share (chance {1 / len(effects['matrix']):.2f}) | {effects['own_share']:.3f} |"]
    measured = f"{effects['perceptual']}, {effects['pairs']} pairs"
    lines += ["", f"Effect of flipping one element, relative to all ({measured}):", ""]
    lines += ["| | " + " | ".join(effects["layers"]) + " |", "|---" * (1 + len(effects["layers"])) + "|"]
    for number, row in enumerate(effects["matrix"], 1):
        lines += [f"| element {number} | " + " | ".join(f"{value:.3f}" for value in row) + " |"]
    return "\n".join(lines) + "\n"


def _batches(bundle: Bundle, dataset: FaceImages, count: int) -> Iterator[Tensor]:
    """The first `count` images in batches of two or more, (B, 3, S, S) in [-1, 1] on the device."""
    size = bundle.config.evaluation.batch_size
    starts = list(range(0, count, size))
    if count - starts[-1] == 1 and len(starts) > 1:
        starts.pop()  # a single image has no partner; it joins the batch before
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        yield dataset.load(list(range(start, end))).to(bundle.device)


def _reconstruction(bundle: Bundle, dataset: FaceImages) -> dict[str, float]:
    psnr: dict[str, Any] = {"data_range": DATA_RANGE, "reduction": "elementwise_mean", "dim": (1, 2, 3)}
    # In a job of several ranks one measures: syncing, it would wait for the others for ever.
    metrics = {
        "L1": MeanAbsoluteError(sync_on_compute=False),
        "MSE": MeanSquaredError(sync_on_compute=False),
        "PSNR": PeakSignalNoiseRatio(**psnr, sync_on_compute=False),
        "SSIM": StructuralSimilarityIndexMeasure(data_range=DATA_RANGE, sync_on_compute=False),
    }
    for metric in metrics.values():
        metric.to(bundle.device)
    total = -(-len(dataset) // bundle.config.evaluation.batch_size)
    for images in progress(_batches(bundle, dataset, len(dataset)), "reconstruction", total):
        reconstructions = bundle.generate(bundle.encode(images))
        for metric in metrics.values():
            metric.update(reconstructions, images)
    return {name: round(float(metric.compute()), 6) for name, metric in metrics.items()}


def _exactness(bundle: Bundle, batches: Iterator[Tensor]) -> dict[str, float]:
    """Largest difference of a fused image at lambda = 1 from A', at lambda = 0 from B'; 0 means equal bits."""
    largest = {"lambda_1": 0.0, "lambda_0": 0.0}
    for a in batches:
        b = rolled(a)
        for key, value, image in (("lambda_1", 1.0, a), ("lambda_0", 0.0, b)):
            difference = bundle.fuse(a, b, value) - bundle.generate(bundle.encode(image))
            largest[key] = max(largest[key], float(difference.abs().max()))
    return largest


def _write(bundle: Bundle, dataset: FaceImages, effects: Tensor, result: dict[str, Any], out: Path) -> None:
    images = dataset.load(list(range(min(SHOWN, len(dataset))))).to(bundle.device)
    reconstructions = bundle.generate(bundle.encode(images))
    strips = [[a, *pictures.strip(bundle.model, a, b, 6), b] for a, b in zip(images[::2], images[1::2], strict=False)]
    names = [f"element {n}" for n in range(1, bundle.elements + 1)]
    figures = {
        "reconstruction": pictures.tile([list(images), list(reconstructions)]),
        "strips": pictures.tile(strips),
        "effects": pictures.heat_map(effects.numpy(), names, LAYERS, "effect of flipping one element"),
    }
    try:
        for name, figure in figures.items():
            fuse.save(figure, out / f"{name}.png")
        files.write_text(out / "metrics.md", as_table(result))
        files.write_json(out / "metrics.json", result)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None


def _rounded(values: Tensor) -> Any:
    return torch.round(values.double(), decimals=4).tolist()
