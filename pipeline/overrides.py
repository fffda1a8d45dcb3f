"""`--set a.b=c` on values as YAML gives them."""

from typing import Any

import yaml

from pipeline.errors import UserError


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
        value = yaml.safe_load(text)
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
