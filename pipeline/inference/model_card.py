"""The model card of a bundle: what it is, how it was trained, what it is good for, and what was measured of it.

BUNDLE/README.md   the card; its first lines are what the Hugging Face Hub reads
BUNDLE/strip.png   faces fused from painted ones; photographs of people are not copied into a bundle
"""

from pathlib import Path
from typing import Any, NamedTuple

from pipeline.common import files
from pipeline.config.schema import Config
from pipeline.data.synth import PAINTED
from pipeline.inference import weights
from pipeline.models.elements import element_names

METRICS, STRIPS = "metrics.json", "strips.png"
"""Of an evaluation's files, those that a card shows."""
RESULTS_START, RESULTS_END = "\n## Results\n\n", "\n\n## "
"""Around the section that `update` replaces."""


class Result(NamedTuple):
    """A number of an evaluation: where it is in metrics.json, and what it says."""

    section: str
    name: str
    label: str
    best: str


RESULTS = (
    Result("reconstruction", "PSNR", "reconstruction, PSNR in dB", "higher"),
    Result("reconstruction", "SSIM", "reconstruction, SSIM", "1"),
    Result("reconstruction", "LPIPS", "reconstruction, LPIPS", "0"),
    Result("detectability", "fused", "half-way faces told from reconstructions, AUC", "0.5: as much a face"),
    Result("detectability", "mean_reconstructions", "the same of the pixels' mean, which needs no training", "0.5"),
    Result("realism", "FID_fused_over_floor", "FID of half-way faces over that of reconstructions", "1"),
    Result("half_way", "detour", "half-way faces, detour from a straight way", "1"),
    Result("effects", "own_share", "own share: an element changes its layer", "1; chance 0.20"),
    Result("effects", "leakage", "leakage: an element changes other layers", "0; chance 0.80"),
)


def write(folder: Path, config: Config, trained: dict[str, Any], evaluation: Path) -> None:
    """Write the card into a new bundle's folder.

    Args:
        trained: where the weights come from, as in the bundle's config.json.
        evaluation: a folder that may hold an evaluation. It is shown if it is one of these weights.

    Raises:
        OSError: if it cannot be written.
    """
    files.write_text(folder / weights.CARD, _card(config, trained, _results(folder, config, trained, evaluation)))


def update(folder: Path, config: Config, trained: dict[str, Any], evaluation: Path) -> None:
    """Show an evaluation in the card that a bundle has; what people have changed around the results stays.

    Args:
        as of `write`.

    Raises:
        UserError: if it cannot be written.
    """
    path = folder / weights.CARD
    with files.os_errors_named(path):
        try:
            card = files.read_bytes(path, files.MOST_JSON).decode()
        except (FileNotFoundError, UnicodeDecodeError):
            return
        before, start, rest = card.partition(RESULTS_START)
        _, end, after = rest.partition(RESULTS_END)
        if start and end:  # else it is a card of somebody's own
            new = before + start + _results(folder, config, trained, evaluation) + end + after
            if new != card:
                files.write_text(path, new)


def _evaluation_of(trained: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The numbers of an evaluation; none if it is of other weights, or cannot be read."""
    try:
        metrics = files.read_json(folder / METRICS)
    except (OSError, ValueError):
        return {}
    return metrics if isinstance(metrics, dict) and metrics.get("bundle") == trained else {}


def _card(config: Config, trained: dict[str, Any], results: str) -> str:
    size, painted = config.data.image_size, config.data.source == PAINTED
    licence = "license: apache-2.0" if painted else "license: other\nlicense_name: as-of-the-training-photographs"
    names = [f"{n}. {each.name}. {each.text}".rstrip() for n, each in enumerate(element_names(config.model), 1)]
    return f"""---
{licence}
library_name: latentfuse
pipeline_tag: image-to-image
tags: [image-fusion, face-fusion, faces, autoencoder]
---
# Element-wise latent fusion of faces

Fuses two photographs by mixing {config.model.elements} elements of their latents, each by its own lambda:
`Z_C = Lambda o Z_A + (1 - Lambda) o Z_B`, then `C = G(Z_C)`. Images are {size} x {size}.

```python
import pipeline  # of the package latentfuse

bundle = pipeline.load_bundle("path/of/this/folder")  # or "owner/name" on the Hub
(fused,) = bundle.fuse("a.jpg", "b.jpg", [1, 0.5, 0, 0, 1], as_images=True)  # 1 is A, 0 is B
```

On the command line: `latentfuse fuse path/of/this/folder a.jpg b.jpg --strip 6`. The elements:

{chr(10).join(names)}
{RESULTS_START}{results}{RESULTS_END}Intended use

Research on how a face can be taken apart and put together, teaching, and pictures of faces whose people agreed. Faces
must be aligned as those it was trained on; `latentfuse align` does that for photographs.

## Limits

- Not for telling who someone is, for deceiving, or for a picture of a person who did not agree. The faces it draws are
  of nobody, yet resemble those they are fused from.
- Images are soft, and it draws best what its training images had much of: look at faces of every age and colour of
  skin before you rely on it. Faces turned aside, glasses and hands are drawn badly.
- {_licence(painted)}

## Training

{_training(config, trained)}
"""


def _results(folder: Path, config: Config, trained: dict[str, Any], evaluation: Path) -> str:
    """The section of the results; the picture that it shows is copied into the bundle."""
    metrics = _evaluation_of(trained, evaluation)
    rows = [row for result in RESULTS if (row := _row(metrics, result))]
    if not rows:
        return (
            "None yet. `latentfuse evaluate` measures it on held-out faces; where its `--out` is RUN_DIR/evaluation,\n"
            "the next export shows the numbers here."
        )
    lines = ["**With random perceptual weights: a demonstration, not a result.**", ""] if _random(config) else []
    lines += ["On held-out faces:", "", "| | value | 95 % interval | best |", "|---|---|---|---|", *rows]
    if config.data.source == PAINTED and (evaluation / STRIPS).is_file():
        with files.replacing(folder / weights.STRIP) as temporary:
            temporary.write_bytes(files.read_bytes(evaluation / STRIPS, files.MOST_IMAGE))
        lines += ["", f"![Held-out faces, and faces that lead from one to the other]({weights.STRIP})"]
    return "\n".join(lines)


def _row(metrics: dict[str, Any], result: Result) -> str | None:
    """A row of the table; None for what was not measured."""
    section = metrics.get(result.section)
    if not isinstance(section, dict) or not isinstance(section.get(result.name), int | float):
        return None
    ends = section.get("interval", {}).get(result.name)
    interval = " to ".join(f"{end:.3g}" for end in ends) if ends and None not in ends else ""
    return f"| {result.label} | {section[result.name]:.3g} | {interval} | {result.best} |"


def _licence(painted: bool) -> str:
    if painted:
        return "Trained on painted faces: it knows no photograph."
    return (
        "The code is Apache-2.0. What may be done with the weights depends on the training photographs: CelebA's are\n"
        "  for non-commercial research only. Set `license` above before you publish them."
    )


def _random(config: Config) -> bool:
    return config.perceptual.weights == "random"


def _training(config: Config, trained: dict[str, Any]) -> str:
    perceptual = config.perceptual
    labelled = " (random weights: a demonstration, not a result)" if _random(config) else ""
    return f"""| | |
|---|---|
| stage, step | {trained["stage"]}, {trained["step"]} |
| images seen in this stage | {trained["images_seen"]:,} |
| shards (content hash) | `{trained["data_hash"][:16]}` |
| weights | {"exponential moving average" if trained["weights"] == "average" else "as trained"} |
| perceptual network | {perceptual.arch}, weights `{Path(perceptual.weights).name}`{labelled} |
| feature scale | {perceptual.feature_scale} |
| base channels, elements, reading | {config.model.base_channels}, {config.model.elements}, {config.fusion.reading} |"""
