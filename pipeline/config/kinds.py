"""Kinds of values that a configuration holds: numbers with limits, folders, and words that YAML reads otherwise."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

LARGEST = 10**12
"""No whole number of a configuration is larger."""


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # pydantic would take true for 1
        raise PydanticCustomError("number", "a number is wanted")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise PydanticCustomError("number", "no number is as large")
    return value


Whole = Annotated[int, BeforeValidator(_number)]
Number = Annotated[float, BeforeValidator(_number)]
Share = Annotated[Number, Field(ge=0, le=1)]
Weight = Annotated[Number, Field(ge=0)]
Positive = Annotated[Whole, Field(ge=1)]


def number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _not_empty(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():
        raise PydanticCustomError("empty", "must name a folder (`.` is the present one)")
    return value


Folder = Annotated[Path, BeforeValidator(_not_empty)]


def yaml_no(value: Any) -> Any:
    return "no" if value is False else value  # YAML 1.1 reads a bare `no` as false
