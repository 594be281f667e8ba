"""Secrets in texts: passwords and signatures in URLs, which no file and no message may hold."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"
# What stands before the @ of Azure's URLs is a container.
_PASSWORD = re.compile(r"(?P<scheme>\b(?!abfss?:|wasbs?:)[a-z][a-z0-9+.-]*://)[^/@\s'\"]+@", re.IGNORECASE)
# Presigned URLs carry their signature in the query, under names that differ between stores: none of it is kept.
_QUERY = re.compile(r"(?P<place>\b[a-z][a-z0-9+.-]*://[^\s?'\"]+)\?[^\s'\"]+", re.IGNORECASE)


def redacted(text: str) -> str:
    """The text with user names, passwords and queries of its URLs replaced by ***."""
    if "://" not in text:
        return text
    return _QUERY.sub(rf"\g<place>?{HIDDEN}", _PASSWORD.sub(rf"\g<scheme>{HIDDEN}@", text))


def without_secrets(options: Any) -> Any:
    """Plain values (dicts, lists, texts) with every text `redacted`."""
    if isinstance(options, dict):
        return {name: without_secrets(value) for name, value in options.items()}
    if isinstance(options, list | tuple):
        return [without_secrets(value) for value in options]
    return redacted(options) if isinstance(options, str) else options
