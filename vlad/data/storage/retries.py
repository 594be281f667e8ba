"""Asking what is far away until it answers: what may pass is tried again, after a wait that doubles."""

from __future__ import annotations

import http.client
import itertools
import random
import ssl
import threading
import time
import urllib.error
from collections.abc import Callable
from typing import Any, TypeVar

from vlad.data.options import FetchOptions
from vlad.data.storage.urls import shown
from vlad.utils.errors import UserError

Result = TypeVar("Result")

LONGEST_WAIT_SECONDS = 60.0  # between two tries
_NOT_TRANSIENT = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError")
_JITTER = random.SystemRandom()  # draws nothing from the generators that a run is seeded with


class StorageError(UserError):
    """Something that cannot be read or written where it lies; found before or while a run reads."""

    def __init__(self, message: str) -> None:
        # A DataLoader makes a worker's exception again from its whole traceback: our sentence is its end.
        kind = type(self)
        super().__init__(message.rpartition(f"{kind.__module__}.{kind.__name__}: ")[2].strip())


class DamagedError(OSError):
    """What arrived is not what was sent: worth another try."""


def attempts(url: str, options: FetchOptions, action: Callable[[], Result]) -> Result:
    """What `action` gives, tried again after what may pass. Raises StorageError: the URL, the reason, the tries."""
    for attempt in itertools.count(1):
        try:
            return action()
        except UserError:
            raise
        except Exception as error:
            if isinstance(error, (TypeError, AttributeError, NameError, AssertionError, LookupError)):
                raise  # ours, not the network's
            if attempt > options.retries or not _may_pass(error):
                tries = "1 try" if attempt == 1 else f"{attempt} tries"
                damaged = isinstance(error, DamagedError)
                remedy = "copy or make it again" if damaged else "check the address, your access and the network"
                raise StorageError(
                    f"data.shards: {shown(url)} failed after {tries}: {_reason(error, options)}; {remedy}."
                ) from error
            wait = options.backoff_seconds * 2 ** (attempt - 1) * _JITTER.uniform(0.5, 1.5)
            time.sleep(min(LONGEST_WAIT_SECONDS, max(wait, _asked_wait_seconds(error))))
    raise AssertionError("the loop above ends by returning or raising")


def within(seconds: float, function: Callable[..., Result], *arguments: Any) -> Result:
    """What the call gives. Raises TimeoutError when it takes longer; it is left behind then, in a thread of its own."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function(*arguments))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"nothing came for {seconds:g} seconds")
    return results[0]


def _may_pass(error: Exception) -> bool:
    """Whether a later try may fare better."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 425, 429) or error.code >= 500
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)):
        return False
    # A store's own ValueError is about what it was given: no account is named, an address is none.
    if isinstance(cause, (ssl.SSLCertVerificationError, http.client.InvalidURL, NotImplementedError, ValueError)):
        return False
    return type(cause).__name__ not in _NOT_TRANSIENT


def _asked_wait_seconds(error: Exception) -> float:
    """The wait that a busy server asks for, 0 where it does not."""
    if not isinstance(error, urllib.error.HTTPError):
        return 0.0
    asked = error.headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else 0.0


def _reason(error: Exception, options: FetchOptions) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, FileNotFoundError):
        return "it is not there"
    if isinstance(cause, PermissionError):
        return "access is refused"
    if isinstance(cause, TimeoutError):
        return f"nothing came for {options.timeout_seconds:g} seconds"
    return (" ".join(str(cause).split()) or type(cause).__name__)[:300].rstrip(".")
