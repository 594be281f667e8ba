"""Captioning loss against its formula and against transformers'."""

import math

import torch
from transformers.loss.loss_utils import ForCausalLMLoss

from vlad.losses.extra.captioning import captioning_loss

MASK = torch.tensor([[True, True, True, False], [False, True, True, True], [True, False, False, False]])


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    states, output = torch.randn(3, 4, 6, generator=generator), torch.randn(9, 6, generator=generator)
    return states, torch.randint(9, (3, 4), generator=generator), output


def test_each_token_is_predicted_from_the_state_before_it() -> None:
    states, token_ids, output = example()
    total, count = 0.0, 0
    for row, last in ((0, 1), (0, 2), (1, 2), (1, 3)):  # the first of a caption has none before it
        logits = [float(w @ states[row, last - 1]) for w in output]
        total -= logits[token_ids[row, last]] - math.log(sum(map(math.exp, logits)))
        count += 1

    assert abs(captioning_loss(states, token_ids, MASK, output).item() - total / count) < 1e-5


def test_it_is_transformers_causal_loss() -> None:
    states, token_ids, output = example()
    labels = token_ids.masked_fill(~MASK, -100)
    labels[1, 1] = -100  # the library would predict it from the template's last token

    wanted = ForCausalLMLoss(states @ output.T, labels, vocab_size=9)

    torch.testing.assert_close(captioning_loss(states, token_ids, MASK, output), wanted)


def test_gradients_reach_the_predicting_states_and_the_matrix() -> None:
    states, token_ids, output = (x.requires_grad_() if x.is_floating_point() else x for x in example())

    captioning_loss(states, token_ids, MASK, output).backward()

    assert states.grad is not None
    assert output.grad is not None
    predicting = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]).bool()
    assert torch.equal(states.grad.abs().amax(dim=2) > 0, predicting)
    assert output.grad.abs().max() > 0


def test_captions_of_one_token_predict_nothing() -> None:
    states, token_ids, output = example()
    loss = captioning_loss(states.requires_grad_(), token_ids, torch.eye(3, 4, dtype=torch.bool), output)
    loss.backward()
    assert loss.item() == 0
    assert states.grad is not None
    assert states.grad.abs().max() == 0
