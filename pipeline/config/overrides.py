"""YAML as configurations and `--set a.b=c` have it: small, every key once, each anchor's contents counted anew."""

from typing import Any

import yaml

from pipeline.common.errors import UserError

MOST_VALUES = 10_000
"""Keys, values and lists of a text, those behind an alias counted each time it is used."""
MOST_LEVELS = 20
"""Sections and lists within each other."""
LONGEST_NUMBER = 100
"""Characters of what is not text."""


class _Loader(yaml.SafeLoader):
    """Refuses what PyYAML takes: keys that come twice, of which it keeps the last, and texts that grow by aliases."""

    def get_single_node(self) -> Any:
        root = super().get_single_node()
        nodes = [(root, 0)] if root else []
        for node, level in nodes:  # it grows as it is walked
            if len(nodes) > MOST_VALUES or level > MOST_LEVELS:
                raise ValueError(f"more than {MOST_VALUES:,} values, or more than {MOST_LEVELS} levels of them")
            nodes += [(inner, level + 1) for inner in _inner(node)]
        return root


def _inner(node: Any) -> list[Any]:
    """What is in a list or a mapping; checks a mapping's keys, and single values."""
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)} is given twice")
        return [each for pair in node.value for each in pair]
    if "\0" in node.value or any("\ud800" <= each <= "\udfff" for each in node.value):
        raise ValueError("a text with a NUL or half of a character in it")
    if len(node.value) > LONGEST_NUMBER and not node.tag.endswith(":str"):
        raise ValueError(f"a number of {len(node.value)} characters")
    return []


def parse(text: str) -> Any:
    """What a YAML text holds.

    Raises:
        ValueError: if it is none, or larger or deeper than any configuration.
    """
    try:
        return yaml.load(text, _Loader)  # a safe loader
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except Exception as error:  # PyYAML raises all kinds of errors on values that are not what their tag says
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def keys_of(override: str) -> list[str]:
    """The keys that `override` names, outermost first. Raises UserError if it is not of the form a.b=c."""
    path, separator, _ = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys) or len(keys) > MOST_LEVELS:
        raise UserError(f"--set {override:.200}: expected key=value, for example --set training.fusion_steps=500")
    return keys


def apply(values: dict[str, Any], override: str) -> None:
    """Set the key that `override` names, in place.

    Raises:
        UserError: if it is not of the form a.b=c with c in YAML.
    """
    keys = keys_of(override)
    try:
        value = parse(override.partition("=")[2])
    except ValueError:
        raise UserError(f"--set {override:.200}: the value is not valid YAML") from None
    if isinstance(value, str):
        value = _number(value)
    node = values
    for key in keys[:-1]:
        child = node.get(key)
        node[key] = node = dict(child) if isinstance(child, dict) else {}
    node[keys[-1]] = value


def _number(text: str) -> float | str:
    try:
        return float(text)  # YAML 1.1 takes 1e-4 for a string
    except ValueError:
        return text
