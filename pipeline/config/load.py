"""A configuration from a file and `--set a.b=c`, validated once; and back to YAML."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.common.errors import UserError
from pipeline.config import overrides
from pipeline.config.messages import describe
from pipeline.config.schema import Config

RETIRED: dict[str, tuple[str, ...]] = {
    "data": ("cache", "cache_dir"),
    "fusion": ("separation_pairs",),
    "loss_weights": ("separation", "path"),
}
"""Keys of earlier versions, which the configurations in their checkpoints and bundles hold. Models do not need them."""


def load(path: Path | None, settings: list[str] | None = None) -> Config:
    """Read `path` (null: the defaults), apply `settings` of the form `a.b=c`, validate.

    Raises:
        UserError: naming the file or override, the key, the value and what would do.
    """
    values: Any = {}
    if path is not None:
        try:
            values = overrides.parse(path.read_text(encoding="utf-8"))
            values = {} if values is None else values  # an empty file
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or an impossible date
            raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise UserError(f"{path}: must hold sections and keys, not a {type(values).__name__}")
    for setting in settings or []:
        overrides.apply(values, setting)
    return validate(values, str(path) if path else "configuration")


def validate(values: dict[str, Any], origin: str) -> Config:
    """Build a Config; `origin` names the file in messages.

    Raises:
        UserError: for the first key that does not hold, with the number of further ones.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first, *rest = error.errors()
        more = f" (and {len(rest)} more)" if rest else ""
        raise UserError(f"{origin}: {describe(first, Config)}{more}") from None


def validate_stored(values: Any, origin: str) -> Config:
    """`validate` of what a checkpoint or a bundle holds, which an earlier version may have written."""
    if isinstance(values, dict):
        for section, keys in RETIRED.items():
            if isinstance(values.get(section), dict):
                values = {**values, section: {k: v for k, v in values[section].items() if k not in keys}}
        model = values.get("model")
        if isinstance(model, dict) and model.get("refinement") is False:  # one with a refinement is refused
            values = {**values, "model": {k: v for k, v in model.items() if k != "refinement"}}
    return validate(values, origin)


def dump(config: Config) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.as_dict(), sort_keys=False)
