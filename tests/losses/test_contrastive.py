"""L_align against its formula written as loops, and against the library's CLIP loss."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.clip.modeling_clip import contrastive_loss as clip_contrastive_loss

from vlad.losses.contrastive import AlignmentHead, contrastive_loss


def states(rows: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 8, generator=generator), 3 * torch.randn(rows, 8, generator=generator)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_the_loss_is_equation_3(temperature: float) -> None:
    t, v = states()
    total = 0.0
    for i in range(len(t)):
        weights = []
        for j in range(len(v)):
            cosine = float(t[i] @ v[j]) / (float(t[i].norm()) * float(v[j].norm()))
            weights.append(math.exp(cosine / temperature))
        total -= math.log(weights[i] / sum(weights))

    assert float(contrastive_loss(t, v, temperature)) == pytest.approx(total / len(t), rel=1e-5)


def test_the_loss_is_the_text_half_of_clip_s() -> None:
    t, v = states()
    logits = F.normalize(t, dim=-1) @ F.normalize(v, dim=-1).T / 0.2

    torch.testing.assert_close(contrastive_loss(t, v, 0.2), clip_contrastive_loss(logits))
    assert not torch.allclose(contrastive_loss(t, v, 0.2), clip_contrastive_loss(logits.T))


def test_matching_pairs_cost_less_than_mixed_ones() -> None:
    t, _ = states()
    assert contrastive_loss(t, t, 0.07) < 0.1
    assert contrastive_loss(t, t.roll(1, dims=0), 0.07) > 5


@pytest.mark.parametrize(("log_temperature", "temperature"), [(-20.0, 0.01), (5.0, 1.0), (math.log(0.3), 0.3)])
def test_the_temperature_is_clamped(log_temperature: float, temperature: float) -> None:
    torch.manual_seed(0)
    head = AlignmentHead(8, 8, width=4)
    head.log_temperature.data.fill_(log_temperature)
    t, v = states()

    loss = head(t, v)

    assert head.temperature.item() == pytest.approx(temperature, rel=1e-5)
    torch.testing.assert_close(loss, contrastive_loss(head.from_text(t), head.from_image(v), temperature))


def test_the_head_starts_at_its_temperature_and_trains_all_of_itself() -> None:
    torch.manual_seed(0)
    head = AlignmentHead(8, 8, width=4, temperature=0.07)
    t, v = (x.requires_grad_() for x in states())

    head(t, v).backward()

    assert head.temperature.item() == pytest.approx(0.07)
    for gradient in (t.grad, v.grad, *(parameter.grad for parameter in head.parameters())):
        assert gradient is not None
        assert gradient.abs().max() > 0


def test_half_precision_states_are_compared_in_full_precision() -> None:
    torch.manual_seed(0)
    head = AlignmentHead(8, 8, width=4)
    t, v = (x.bfloat16() for x in states())

    assert head(t, v).dtype == torch.float32
    torch.testing.assert_close(head(t, v), head(t.float(), v.float()))
