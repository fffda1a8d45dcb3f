"""What the elements of a structure are, in words for people who use a model."""

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.config.schema import ModelConfig


class Element(NamedTuple):
    """What an element is called, and what moving it does."""

    name: str
    text: str


PYRAMID = (
    Element("light and colour", "How light the picture is, and its colours."),
    Element("contrast of the detail", "How strong the fine lines are: lashes, lips, strands of hair."),
    Element("contrast of the layout", "How strong the large shapes stand out from each other."),
    Element("detail", "The fine lines themselves: eyes, brows, the edge of the mouth."),
    Element("layout", "The large shapes: the head, the hair, where the face is turned."),
)


def element_names(config: ModelConfig) -> list[Element]:
    """Name and sentence of each element, in order; `element 1` and on where the structure gives them no meaning."""
    if config.structure == "pyramid":
        return list(PYRAMID)
    return [Element(f"element {number}", "") for number in range(1, config.elements + 1)]


def element_labels(elements: Sequence[Element]) -> list[str]:
    """Number and name of each, as `1 light and colour`."""
    unnamed = [f"element {number}" for number in range(1, len(elements) + 1)]
    return [
        plain if element.name == plain else f"{number} {element.name}"
        for number, (plain, element) in enumerate(zip(unnamed, elements, strict=True), 1)
    ]
