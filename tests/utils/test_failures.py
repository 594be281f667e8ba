"""Failures that libraries raise, translated into user errors."""

from __future__ import annotations

import pickle
import socket
from datetime import timedelta

import pytest
import torch
from safetensors import SafetensorError
from torch import distributed as dist

from vlad.utils.errors import UserError
from vlad.utils.failures import is_lost_connection, user_errors


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            r"\[1/3\] out of memory .*2 GiB.*; use less\.",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 99 bytes"), "out of memory .*; use less"),
        (
            SafetensorError("I/O error: No space left on device (os error 28)"),
            "no space left on the disk .*; make room",
        ),
        (OSError(122, "Disk quota exceeded"), "no space left on the disk .*; make room"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), r"worker was lost .*pid 7.*; fewer"),
        (SafetensorError("incomplete metadata"), "cannot be read .*incomplete metadata.*; copy it again"),
        (pickle.UnpicklingError("code"), "cannot be read .*; copy it again"),
    ],
)
def test_failures_end_with_their_remedy(error: Exception, message: str) -> None:
    remedies = {"memory": "use less", "disk": "make room", "worker": "fewer", "unreadable": "copy it again"}
    with pytest.raises(UserError, match=message), user_errors("[1/3]", **remedies):
        raise error


@pytest.mark.parametrize(
    "error",
    [RuntimeError("mat1 and mat2 shapes"), UserError("No space left on device"), torch.OutOfMemoryError("full")],
)
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, user_errors("[1/3]", disk="make room", worker="fewer"):
        raise error
    assert raised.value is error


def test_a_taken_port_is_reported_with_its_remedy_and_is_no_lost_rank() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        message = rf"meet at is taken .*port: {port}.*; set another\."
        with pytest.raises(UserError, match=message) as raised, user_errors("[1/3]", port="set another"):
            dist.TCPStore("127.0.0.1", port, 2, is_master=True, timeout=timedelta(seconds=5))
    assert raised.value.__cause__ is not None and not is_lost_connection(raised.value.__cause__)


def test_lost_connections_are_recognised() -> None:
    assert is_lost_connection(dist.DistNetworkError("x"))
    assert is_lost_connection(RuntimeError("[/gloo/transport/tcp/pair.cc:534] Connection closed by peer"))
    assert not is_lost_connection(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_lost_connection(ValueError("socket"))
