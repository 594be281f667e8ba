"""Losses against open_clip's, if it is installed: pip install --no-deps open_clip_torch.

The package needs torchvision, which is not among our dependencies; its losses do not, and are loaded alone.
"""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vlad.losses.contrastive import diagonal_relations, sigmoid_loss, symmetric_loss
from vlad.losses.extra.captioning import captioning_loss

SPEC = importlib.util.find_spec("open_clip")
pytestmark = pytest.mark.skipif(SPEC is None, reason="open_clip is not installed")


@pytest.fixture(scope="module")
def open_clip() -> ModuleType:
    assert SPEC is not None
    assert SPEC.origin is not None
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(SPEC.origin).parent / "loss.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def compare(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        assert mine.abs().max() > 0
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-4)


def test_the_symmetric_loss_is_open_clip_s(open_clip: ModuleType) -> None:
    t, v, scale = draw(0, 6, 8), draw(1, 6, 8), torch.tensor(14.3, requires_grad=True)
    theirs = open_clip.ClipLoss()(F.normalize(v, dim=-1), F.normalize(t, dim=-1), scale)
    compare(symmetric_loss(t, v, 1 / scale), theirs, [t, v, scale])


def test_the_sigmoid_loss_is_open_clip_s(open_clip: ModuleType) -> None:
    t, v = draw(0, 6, 8), draw(1, 6, 8)
    scale, bias = torch.tensor(10.0, requires_grad=True), torch.tensor(-9.0, requires_grad=True)
    theirs = open_clip.SigLipLoss()(F.normalize(v, dim=-1), F.normalize(t, dim=-1), scale, bias)
    compare(sigmoid_loss(t, v, 1 / scale, bias, diagonal_relations(6)), theirs, [t, v, scale, bias])


def test_the_captioning_loss_is_that_of_open_clip_s_coca(open_clip: ModuleType) -> None:
    states, output = draw(2, 3, 5, 6), draw(3, 9, 6)
    token_ids = torch.randint(1, 9, (3, 5), generator=torch.Generator().manual_seed(4))
    mask = torch.arange(5) < torch.tensor([5, 3, 2])[:, None]
    labels = token_ids.masked_fill(~mask, 0)[:, 1:]  # 0 is its padding
    coca = open_clip.CoCaLoss(caption_loss_weight=1.0, clip_loss_weight=0.0)
    parts = coca(states[:, 0], states[:, 0], (states @ output.T)[:, :-1], labels, torch.tensor(1.0))
    compare(captioning_loss(states, token_ids, mask, output), parts[1], [states, output])
