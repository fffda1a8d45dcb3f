"""Pictures for people: tiles of faces, strips from A to B, heat maps, curves, feature maps."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from pipeline.data import images
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
    axes.set_xticks(range(len(columns)), columns, rotation=90 if len(columns) > 8 else 0)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_title(title, fontsize=10)
    for (row, column), value in np.ndenumerate(values):
        colour = "black" if value > 0.6 * values.max() else "white"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
    return _drawn(canvas)


def curves(
    x: Sequence[float], lines: Mapping[str, Sequence[float]], labels: tuple[str, str], title: str
) -> Image.Image:
    """Lines over common places `x`; `labels` are those of the two axes."""
    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, values in lines.items():
        axes.plot(x, values, marker="o", markersize=3, label=name)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _drawn(canvas)


def maps(rows: Sequence[tuple[str, Sequence[tuple[str, Tensor]]]], title: str) -> Image.Image:
    """Rows of labelled maps (H, W), each in its own range of greys, as the paper shows feature maps."""
    columns = max(len(row) for _, row in rows)
    width, height = 1.2 * columns + 1.2, 1.4 * len(rows) + 0.4
    figure = Figure(figsize=(width, height), dpi=100)
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    figure.subplots_adjust(1.15 / width, 0.05 / height, 1 - 0.05 / width, 1 - 0.5 / height, 0.05, 0.2)
    for axes in grid.flat:
        axes.set_axis_off()
    for place, (name, row) in enumerate(rows):
        for axes, (label, values) in zip(grid[place], row, strict=False):
            axes.imshow(values.cpu().numpy(), cmap="gray", interpolation="nearest")
            axes.set_title(label, fontsize=7, pad=2)
        grid[place][0].text(-0.06, 0.5, name, transform=grid[place][0].transAxes, ha="right", va="center", fontsize=9)
    figure.text(0.5, 1 - 0.2 / height, title, ha="center", va="center", fontsize=9)
    return _drawn(canvas)


def _drawn(canvas: FigureCanvasAgg) -> Image.Image:
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
