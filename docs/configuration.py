"""docs/configuration.md, made from the schema: `python docs/configuration.py > docs/configuration.md`."""

import json
import typing
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.config.schema import Config

HEAD = """# Configuration

Every key, its type, its default and what it means. A YAML file holds sections and keys; `--set section.key=value`
overrides one; `--dry-run` prints what results. This page is made from the schema by
`python docs/configuration.py > docs/configuration.md`.
"""


def document() -> str:
    """The page as Markdown."""
    rows: list[str] = []
    sections: list[str] = []
    for name, field in Config.model_fields.items():
        if _is_section(field.annotation):
            sections += _section(name, field.annotation)
        else:
            rows.append(_row(name, field))
    return "\n".join([HEAD, *_table(rows), *sections]) + "\n"


def _section(name: str, model: Any) -> list[str]:
    rows, inner = [], []
    for key, field in model.model_fields.items():
        if _is_section(field.annotation):
            inner += _section(f"{name}.{key}", field.annotation)
        else:
            rows.append(_row(f"{name}.{key}", field))
    about = [_one_line(model.__doc__), ""] if model.__doc__ else []
    return ["", f"## {name}", "", *about, *_table(rows), *inner]


def _table(rows: list[str]) -> list[str]:
    return ["| key | type | default | meaning |", "|---|---|---|---|", *rows]


def _row(name: str, field: FieldInfo) -> str:
    kind = " ".join([_type(field.annotation), *map(_limit, field.metadata)]).strip()
    cells = [f"`{name}`", kind, f"`{_value(field.default)}`", _one_line(field.description or "")]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _type(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (UnionType, typing.Union):
        return " or ".join(_type(each) for each in inner)
    if origin is typing.Annotated:
        return " ".join([_type(inner[0]), *map(_limit, inner[1:])]).strip()
    if origin is tuple:
        return f"{len(inner)} numbers"
    if origin is list:
        return f"list of {_type(inner[0])}"
    names = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path", NoneType: "null"}
    return names[annotation]


def _limit(constraint: Any) -> str:
    """`>= 1` of a constraint; nothing of what is no limit."""
    if inner := getattr(constraint, "metadata", None):  # a pydantic Field holds its limits
        return " ".join(map(_limit, inner))
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return " ".join(f"{sign} {getattr(constraint, name)}" for name, sign in signs.items() if hasattr(constraint, name))


def _value(default: Any) -> str:
    return str(default) if isinstance(default, Path | str) else json.dumps(default)


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    print(document(), end="")
