"""What is wrong with a configuration, in one line, and what would do."""

import difflib
from typing import Any

from pydantic import BaseModel


def describe(error: Any, root: type[BaseModel]) -> str:
    """Key, value and fix of one of pydantic's errors about `root`."""
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        section: Any = root
        for part in error["loc"][:-1]:
            section = section.model_fields[part].annotation
        close = difflib.get_close_matches(str(error["loc"][-1]), section.model_fields, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are: {', '.join(section.model_fields)}"
        return f"{location}: unknown key; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{location}.{message}" if location else message
    return f"{location}: {message}, not {error['input']!r:.200}"
