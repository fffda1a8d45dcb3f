"""What a bundle says of itself besides its weights: the names of its elements, and the SHA-256 by which it is known."""

from pathlib import Path

from pipeline.common import files
from pipeline.common.errors import one_line
from pipeline.config.schema import ModelConfig
from pipeline.inference.weights import CONFIG
from pipeline.models.elements import Element, element_names

LONGEST_TEXT = 200
"""Characters of an element's name or sentence."""


def described_elements(bundle: Path, config: ModelConfig) -> list[Element]:
    """Name and sentence of each element: those in the bundle's config.json, else those of its structure.

    Args:
        bundle: the folder of a bundle that has been loaded; `config`: of its model.
    """
    given = files.read_json(bundle / CONFIG).get("elements")
    usual = element_names(config)
    if not isinstance(given, list) or len(given) != len(usual):
        return usual
    texts = [(each.get("name"), each.get("text")) if isinstance(each, dict) else (None, None) for each in given]
    if not all(isinstance(text, str) and len(text) <= LONGEST_TEXT for pair in texts for text in pair):
        return usual
    return [Element(one_line(str(name)), one_line(str(text))) for name, text in texts]


def bundle_hash(bundle: Path) -> str:
    """SHA-256 of a bundle's config.json, which lists those of its weights: `sha256sum BUNDLE/config.json`."""
    return files.sha256(bundle / CONFIG)
