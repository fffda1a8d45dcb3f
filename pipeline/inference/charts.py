"""Charts: heat maps, curves, feature maps. They need matplotlib, which takes a second to import; tiles do not."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor


def heat_map(values: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str) -> Image.Image:
    """A matrix (rows, columns) as colours and numbers."""
    beside = 0.7 + 0.08 * max(map(len, rows))  # inches
    figure = Figure(figsize=(beside + 0.9 * len(columns), 1.2 + 0.5 * len(rows)), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(values, cmap="viridis", vmin=0, vmax=max(float(values.max()), 1e-12), aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=90 if len(columns) > 8 else 0)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_title(title, fontsize=10)
    for (row, column), value in np.ndenumerate(values):
        colour = "black" if value > 0.6 * values.max() else "white"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
    return _drawn(figure)


def curves(
    x: Sequence[float], lines: Mapping[str, Sequence[float]], labels: tuple[str, str], title: str
) -> Image.Image:
    """Lines over common values `x`; `labels` are those of the two axes."""
    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for name, values in lines.items():
        axes.plot(x, values, marker="o", markersize=3, label=name)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _drawn(figure)


def maps(rows: Sequence[tuple[str, Sequence[tuple[str, Tensor]]]], title: str) -> Image.Image:
    """Rows of labelled maps (H, W), each in its own range of greys, as the paper shows feature maps."""
    columns = max(len(row) for _, row in rows)
    width, height = 1.2 * columns + 1.2, 1.4 * len(rows) + 0.4
    figure = Figure(figsize=(width, height), dpi=100)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    figure.subplots_adjust(1.15 / width, 0.05 / height, 1 - 0.05 / width, 1 - 0.5 / height, 0.05, 0.2)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, (name, row) in enumerate(rows):
        for axes, (label, values) in zip(grid[index], row, strict=False):
            axes.imshow(values.cpu().numpy(), cmap="gray", interpolation="nearest")
            axes.set_title(label, fontsize=7, pad=2)
        grid[index][0].text(-0.06, 0.5, name, transform=grid[index][0].transAxes, ha="right", va="center", fontsize=9)
    figure.text(0.5, 1 - 0.2 / height, title, ha="center", va="center", fontsize=9)
    return _drawn(figure)


def _drawn(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
