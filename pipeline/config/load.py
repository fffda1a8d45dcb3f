"""A configuration from a file and `--set a.b=c`, validated once; and back to YAML."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.common.errors import UserError
from pipeline.common.files import read_bytes
from pipeline.config import overrides
from pipeline.config.messages import describe
from pipeline.config.schema import Config

MOST_BYTES = 2**18
"""A larger file is no configuration."""
RETIRED: dict[str, tuple[str, ...]] = {
    "data": ("cache", "cache_dir"),
    "fusion": ("separation_pairs", "real"),
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
            values = overrides.parse(read_bytes(path, MOST_BYTES).decode())
            values = {} if values is None else values  # an empty file
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        except ValueError as error:  # also: not UTF-8
            raise UserError(f"{path}: not valid YAML: {error}") from None
        if not isinstance(values, dict):
            raise UserError(f"{path}: must hold sections and keys, not a {type(values).__name__}")
    resolved = values
    for setting in settings or []:
        resolved = dict(resolved)
        overrides.apply(resolved, setting)
    try:
        return Config.model_validate(resolved)
    except ValidationError as error:
        origin = _origin(error, values, settings or []) or (str(path) if path else "configuration")
        raise _refusal(error, origin) from None


def _origin(error: ValidationError, values: dict[str, Any], settings: list[str]) -> str | None:
    """The `--set` that is to blame: of the key that is wrong, or all where the file alone would do; None: the file."""
    wrong = describe(error.errors()[0], Config).partition(":")[0].split(".")
    for setting in reversed(settings):
        keys = overrides.keys_of(setting)
        shared = min(len(keys), len(wrong))
        if keys[:shared] == wrong[:shared]:
            return f"--set {setting:.200}"
    try:
        Config.model_validate(values)
    except ValidationError:
        return None
    return " ".join(f"--set {setting:.200}" for setting in settings) or None


def validate(values: dict[str, Any], origin: str) -> Config:
    """Build a Config; `origin` names the file in messages.

    Raises:
        UserError: for the first key that does not hold, with the number of further ones.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise _refusal(error, origin) from None


def _refusal(error: ValidationError, origin: str) -> UserError:
    first, *rest = error.errors()
    more = f" (and {len(rest)} more)" if rest else ""
    return UserError(f"{origin}: {describe(first, Config)}{more}")


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
