"""The captioning loss: next-token cross-entropy, which keeps a language model what it was while L_align bends it.

Letters: B batch, L tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from vlad.utils.distributed import mean_over_ranks


def captioning_loss(states: Tensor, token_ids: Tensor, mask: Tensor, output: Tensor) -> Tensor:
    """L_lm = -mean over tokens of log p(w_l | w_<l), p = softmax(W h_{l-1}) (BLIP's LM loss, Li et al., ICML 2022).

    states h: B L D, the last hidden states of a causal model (one that sees what follows has nothing to predict).
    token_ids w: B L. mask: B L, True for the caption's tokens; padding and a template's tokens are False and are
    not predicted, nor is a sequence's first token. output W: V D, the LM head's matrix, or the input embedding where
    the model ties them. For DDP to average: ranks with more tokens weigh more. Logits are made for masked tokens
    only, yet take (tokens x V) numbers.
    """
    predicted = mask[:, 1:] & mask[:, :-1]  # B L-1
    logits = states[:, :-1][predicted].float() @ output.float().T  # (tokens) V
    total = F.cross_entropy(logits, token_ids[:, 1:][predicted], reduction="sum")
    return mean_over_ranks(total, predicted.sum())
