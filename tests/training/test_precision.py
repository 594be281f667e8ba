"""bf16 only where the device computes in it."""

import pytest
import torch

from vlad.training import precision
from vlad.training.precision import native_precision
from vlad.utils.errors import UserError


@pytest.mark.parametrize("wanted", ["32-true", "bf16-mixed"])
def test_a_cpu_with_bf16_runs_as_configured(wanted: precision.Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    assert native_precision(wanted, torch.device("cpu")) == (wanted, None)


def test_a_cpu_without_bf16_trains_in_float32_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: False)
    assert native_precision("32-true", torch.device("cpu")) == ("32-true", None)
    used, note = native_precision("bf16-mixed", torch.device("cpu"))
    assert used == "32-true"
    assert note is not None and "no bf16" in note


def test_a_gpu_without_bf16_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(UserError, match="Tesla T4 has no bf16; use 16-mixed or 32-true"):
        native_precision("bf16-mixed", torch.device("cuda"))


def test_half_precision_needs_a_gpu() -> None:
    with pytest.raises(UserError, match="16-mixed needs a GPU"):
        native_precision("16-mixed", torch.device("cpu"))


def test_mps_trains_in_float32() -> None:
    mps = torch.device("mps")
    assert native_precision("32-true", mps) == ("32-true", None)
    assert native_precision("16-mixed", mps) == ("32-true", "on MPS: trained in float32 in place of 16-mixed")
