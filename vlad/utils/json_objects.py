"""JSON objects from files of any origin, with one kind of error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The object of a JSON text. Raises ValueError for anything else: no UTF-8, no JSON, nested too deep, no object."""
    try:
        record = json.loads(text)
    except RecursionError as error:
        raise ValueError("its values are nested too deep") from error
    if not isinstance(record, dict):
        raise ValueError("it holds no object")
    return record


def read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file. Raises ValueError as `parse_object` does, and OSError where it cannot be read."""
    return parse_object(path.read_bytes())
