"""Retries: how long each wait is, and which errors are tried again."""

import email.message
import time
import urllib.error

import pytest

from vlad.data.options import FetchOptions
from vlad.data.storage.retries import StorageError, with_retries


def http_error(code: int, retry_after: str | None = None) -> urllib.error.HTTPError:
    headers = email.message.Message()
    if retry_after is not None:
        headers["Retry-After"] = retry_after
    return urllib.error.HTTPError("http://host/0.tar", code, "busy", headers, None)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits, which are recorded instead of slept."""
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


def fail_with(error: BaseException, retries: int = 9) -> None:
    def action() -> None:
        raise error

    with_retries("http://host/0.tar", FetchOptions(retries=retries, backoff_seconds=1), action)


def test_waits_double_with_jitter_up_to_a_minute(waits: list[float]) -> None:
    with pytest.raises(StorageError, match="after 10 tries: broken off; check the address"):
        fail_with(ConnectionError("broken off"))
    assert len(waits) == 9
    for number, seconds in enumerate(waits):
        assert min(60, 0.5 * 2**number) <= seconds <= min(60, 1.5 * 2**number)
    assert len(set(waits)) > 3


def test_a_busy_server_says_how_long_to_wait(waits: list[float]) -> None:
    with pytest.raises(StorageError, match="after 2 tries: the server answers 429 busy"):
        fail_with(http_error(429, "7"), retries=1)
    assert waits == [7.0]


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), KeyboardInterrupt()])
def test_bugs_and_interrupts_are_neither_tried_again_nor_reworded(error: BaseException, waits: list[float]) -> None:
    with pytest.raises(type(error)) as caught:
        fail_with(error)
    assert caught.value is error
    assert waits == []
