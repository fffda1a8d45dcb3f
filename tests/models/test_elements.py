"""Words for elements: one for each, and none that a structure does not give."""

import pytest

from pipeline.config.schema import ModelConfig
from pipeline.models.elements import element_labels, element_names


def test_the_pyramid_has_words_for_each_element() -> None:
    names = [element.name for element in element_names(ModelConfig(structure="pyramid"))]
    assert names == ["light and colour", "contrast of the detail", "contrast of the layout", "detail", "layout"]
    assert all(element.text.endswith(".") for element in element_names(ModelConfig(structure="pyramid")))


@pytest.mark.parametrize("count", [1, 7])
def test_channels_are_numbered(count: int) -> None:
    elements = element_names(ModelConfig(structure="channels", elements=count))
    assert [element.name for element in elements] == [f"element {number}" for number in range(1, count + 1)]


def test_labels_number_what_has_a_name() -> None:
    labels = element_labels(element_names(ModelConfig(structure="pyramid")))
    assert labels[0] == "1 light and colour" and labels[4] == "5 layout"
    channels = element_names(ModelConfig(structure="channels", elements=2))
    assert element_labels(channels) == ["element 1", "element 2"]
    assert element_labels([channels[0], channels[0]._replace(name="hair")]) == ["element 1", "2 hair"]
