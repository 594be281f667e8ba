"""Devices and memory."""

import pytest
import torch

from vlad.utils.hardware import available_memory, best_device, peak_memory_bytes


@pytest.mark.parametrize(
    ("cuda", "mps", "accelerator", "chosen"),
    [
        (True, True, "auto", "cuda"),
        (False, True, "auto", "mps"),
        (False, True, "gpu", "mps"),
        (False, False, "auto", "cpu"),
        (True, True, "cpu", "cpu"),
    ],
)
def test_cuda_comes_before_mps_and_mps_before_the_cpu(
    cuda: bool, mps: bool, accelerator: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert best_device(accelerator) == torch.device(chosen)


def test_memory_is_counted_in_bytes() -> None:
    cpu = torch.device("cpu")
    assert 10**7 < peak_memory_bytes(cpu) < 10**12
    assert 10**7 < available_memory(cpu) < 10**13
