"""Captioning loss: next-token cross-entropy, which keeps the LVLM a language model while L_align changes it.

Letters: B batch, L tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from vlad.utils.distributed import mean_over_ranks


def captioning_loss(states: Tensor, token_ids: Tensor, mask: Tensor, output: Tensor) -> Tensor:
    """L_lm = -mean over tokens of log p(w_l | w_<l), p = softmax(W h_{l-1}) (BLIP's LM loss, Li et al., ICML 2022).

    states h: B L D, the last hidden states of a causal model. token_ids w: B L. mask: B L, True for the caption's
    tokens; neither padding and a template's tokens (False) nor a sequence's first token are predicted. output W: V D,
    the LM head's matrix, or the input embedding of a model that ties them. For DDP to average: ranks with more tokens
    weigh more. Logits take (predicted tokens x V) numbers.
    """
    predicted = mask[:, 1:] & mask[:, :-1]  # B L-1
    logits = states[:, :-1][predicted].float() @ output.float().T  # (tokens) V
    total = F.cross_entropy(logits, token_ids[:, 1:][predicted], reduction="sum")
    return mean_over_ranks(total, predicted.sum())
