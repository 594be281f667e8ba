"""Retries and timeouts of network access: transient errors are tried again, after waits that double with jitter."""

from __future__ import annotations

import http.client
import random
import ssl
import threading
import urllib.error
from collections.abc import Callable
from typing import Any, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from vlad.data.options import FetchOptions
from vlad.data.storage.urls import display_url
from vlad.utils.errors import UserError

Result = TypeVar("Result")

MAX_WAIT_SECONDS = 60.0  # between two tries
_BUGS = (TypeError, AttributeError, NameError, AssertionError, LookupError)  # ours, not the network's
_PERMANENT = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError),
    *(ssl.SSLCertVerificationError, http.client.InvalidURL, NotImplementedError),
    ValueError,  # a store's own is about its arguments: no account is named, an address is none; and UserError
    *_BUGS,
)
_PERMANENT_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError")
_JITTER = random.SystemRandom()  # leaves the generators alone that a run is seeded with


class StorageError(UserError):
    """A file that cannot be read from, or written to, its storage; found before or while a run reads."""

    def __init__(self, message: str) -> None:
        # A DataLoader rebuilds a worker's exception from its whole traceback, which ends with our message.
        kind = type(self)
        super().__init__(message.rpartition(f"{kind.__module__}.{kind.__name__}: ")[2].strip())


class DamagedError(OSError):
    """What arrived is not what was sent: worth another try."""


def with_retries(url: str, options: FetchOptions, action: Callable[[], Result]) -> Result:
    """The result of `action`, which is tried again after transient errors.

    Raises StorageError with the URL, the reason and the number of tries.
    """
    retrying = Retrying(
        retry=retry_if_exception(_is_transient),
        stop=stop_after_attempt(options.retries + 1),
        wait=lambda state: _wait_seconds(state, options),
        reraise=True,
    )
    try:
        return retrying(action)
    except (UserError, *_BUGS):
        raise
    except Exception as error:
        tries = retrying.statistics["attempt_number"]
        damaged = isinstance(error, DamagedError)
        remedy = "copy or make it again" if damaged else "check the address, your access and the network"
        raise StorageError(
            f"data.shards: {display_url(url)} failed after {tries} {'try' if tries == 1 else 'tries'}:"
            f" {_reason(error, options)}; {remedy}."
        ) from error


def with_timeout(seconds: float, function: Callable[..., Result], *arguments: Any) -> Result:
    """The result of a call. Raises TimeoutError when it takes longer; its thread is then left behind."""
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
        raise TimeoutError(f"no answer for {seconds:g} seconds")
    return results[0]


def _is_transient(error: BaseException) -> bool:
    """Whether another try may succeed."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 425, 429) or error.code >= 500
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, _PERMANENT) or not isinstance(error, Exception):
        return False
    return type(cause).__name__ not in _PERMANENT_NAMES


def _wait_seconds(state: RetryCallState, options: FetchOptions) -> float:
    """Doubles with every try, with jitter; at least what a busy server asks for."""
    seconds = options.backoff_seconds * 2 ** (state.attempt_number - 1) * _JITTER.uniform(0.5, 1.5)
    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, urllib.error.HTTPError):
        asked = error.headers.get("Retry-After", "")
        seconds = max(seconds, float(asked) if asked.isdigit() else 0.0)
    return min(MAX_WAIT_SECONDS, seconds)


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
