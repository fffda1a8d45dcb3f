"""`--set a.b=c` on values as YAML gives them."""

from typing import Any

import yaml

from pipeline.common.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML forbids keys that come twice in a mapping; PyYAML takes the last of them without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key} is given twice")
        return super().construct_mapping(node, deep)


def parse(text: str) -> Any:
    """What a YAML text holds.

    Raises:
        yaml.YAMLError, ValueError: if it is none.
    """
    return yaml.load(text, _Loader)  # a safe loader


def apply(values: dict[str, Any], override: str) -> None:
    """Set the key that `override` names, in place.

    Raises:
        UserError: if it is not of the form a.b=c with c in YAML.
    """
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise UserError(f"--set {override}: expected key=value, for example --set training.fusion_steps=500")
    try:
        value = parse(text)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"--set {override}: the value is not valid YAML") from None
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
