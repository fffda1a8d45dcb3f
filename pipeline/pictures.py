"""Pictures for people: tiles of faces, strips from A to B, heat maps."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from pipeline import images
from pipeline.models.autoencoder import FusionAutoencoder

GAP = 2
"""White pixels between tiles."""


def tile(rows: Sequence[Sequence[Tensor | None]]) -> Image.Image:
    """Rows of images (3, S, S) in [-1, 1], None for an empty place, on white."""
    first = next(image for row in rows for image in row if image is not None)
    size, columns = first.shape[-1], max(len(row) for row in rows)
    canvas = torch.full((3, len(rows) * (size + GAP) - GAP, columns * (size + GAP) - GAP), 255, dtype=torch.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            if image is not None:
                top, left = y * (size + GAP), x * (size + GAP)
                canvas[:, top : top + size, left : left + size] = images.to_uint8(image).cpu()
    return images.to_pillow(canvas)


@torch.no_grad()
def strip(model: FusionAutoencoder, a: Tensor, b: Tensor, count: int) -> Tensor:
    """One face moving to another: `count` fused images, all lambdas falling from 1 to 0.

    Args:
        a, b: (3, S, S) in [-1, 1], on the device of `model`, which is in eval mode.

    Returns:
        (count, 3, S, S) in [-1, 1].
    """
    z_a, z_b = model.encoder(torch.stack([a, b])).split(1)
    lambdas = torch.linspace(1, 0, count, device=a.device)[:, None].expand(count, 1)
    return model.fuse_latents(z_a.expand(count, -1, -1, -1), z_b.expand(count, -1, -1, -1), lambdas)


def heat_map(values: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str) -> Image.Image:
    """A matrix (rows, columns) as colours and numbers."""
    figure = Figure(figsize=(1.6 + 0.9 * len(columns), 1.2 + 0.5 * len(rows)), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(values, cmap="viridis", vmin=0, vmax=max(float(values.max()), 1e-12), aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_title(title, fontsize=10)
    for (row, column), value in np.ndenumerate(values):
        colour = "black" if value > 0.6 * values.max() else "white"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
