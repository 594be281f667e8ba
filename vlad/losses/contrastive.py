"""Contrastive loss L_align of composed texts t and image embeddings v (Eq. 3), and its variants.

    one-directional   each text is classified among the images                              Eq. 3
    symmetric         and each image among the texts                                        CLIP
    multi-positive    likewise; equal captions are positives, equal strings are left out    UniCL, SupCon
    sigmoid           each pair is classified on its own                                    SigLIP

All but the first take augmented texts: rewordings as positives (SemCLIP's idea), captions with something swapped as
hard negatives (NegCLIP).

Over several processes every rank gathers all rows and computes the one loss of the whole batch. The gather's
backward adds up what every rank sends to a row, world size x dL/drow, and DDP's average over ranks takes the
factor out again: no loss here may be scaled by the world size. A loss that is a mean over a rank's own terms needs
`distributed.mean_over_ranks` instead if their number differs between ranks.

Letters: B batch (of all ranks where gathered), N texts, M augmented texts per image, D width of the shared space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlad.losses.options import AlignmentKind
from vlad.types import Prompt
from vlad.utils.distributed import derived_seed, gather_with_gradient

MINIMUM_TEMPERATURE, MAXIMUM_TEMPERATURE = 0.01, 1.0
SIGMOID_BIAS = -10.0  # SigLIP's: at the start every pair is predicted not to match


def contrastive_loss(t: Tensor, v: Tensor, temperature: Tensor | float) -> Tensor:
    """Eq. 3: L_align = -mean_i log( exp(cos(t_i, v_i) / tau) / sum_j exp(cos(t_i, v_j) / tau) ); tau = temperature.

    t, v: B D, row i of both from the same sample. One-directional as in the paper: texts among images.
    """
    similarities = F.normalize(t, dim=-1) @ F.normalize(v, dim=-1).T / temperature  # B B
    return F.cross_entropy(similarities, torch.arange(len(t), device=t.device))


def symmetric_loss(t: Tensor, v: Tensor, temperature: Tensor | float) -> Tensor:
    """CLIP (Radford et al., 2021, fig. 3): the mean of Eq. 3 and of Eq. 3 with t and v exchanged. t, v: B D."""
    return (contrastive_loss(t, v, temperature) + contrastive_loss(v, t, temperature)) / 2


def multi_positive_loss(t: Tensor, v: Tensor, temperature: Tensor | float, relations: Tensor) -> Tensor:
    """UniCL (Yang et al., CVPR 2022, eq. 2 to 4): symmetric, with any number of matches a row.

        L = 1/2 (L_rows(s, r) + L_rows(s^T, r^T)),  s = cos(t, v) / tau
        L_rows(s, r) = -mean_i 1/|P(i)| sum_{p in P(i)} log( exp(s_ip) / sum_{j: r_ij != 0} exp(s_ij) )

    with P(i) = {j: r_ij = 1} and the mean over the rows that have one: the sum outside the logarithm, SupCon's L_out
    (Khosla et al., 2020, eq. 2). t: N D, v: B D. relations r: N B; 1 for a pair that matches, -1 for one that does not,
    0 for one that is left out. With the identity for r it is CLIP's loss; with rows that match nothing it is NegCLIP's
    (Yuksekgonul et al., ICLR 2023): such texts are in the images' denominators and have no loss of their own.
    """
    similarities = F.normalize(t, dim=-1) @ F.normalize(v, dim=-1).T / temperature  # N B
    return (_rows_loss(similarities, relations) + _rows_loss(similarities.T, relations.T)) / 2


def _rows_loss(similarities: Tensor, relations: Tensor) -> Tensor:
    # Not -inf: the gradients of a row that is left out as a whole would be NaN.
    lowest = torch.finfo(similarities.dtype).min
    log_shares = similarities.masked_fill(relations == 0, lowest).log_softmax(dim=1)
    positive = relations > 0
    counts = positive.sum(dim=1)
    rows = -log_shares.masked_fill(~positive, 0).sum(dim=1) / counts.clamp_min(1)
    return rows.sum() / (counts > 0).sum().clamp_min(1)


def sigmoid_loss(t: Tensor, v: Tensor, temperature: Tensor | float, bias: Tensor | float, relations: Tensor) -> Tensor:
    """SigLIP (Zhai et al., ICCV 2023, eq. 2): L = -1/B sum_ij log sigmoid(r_ij (cos(t_i, v_j) / tau + b)).

    t: N D, v: B D, b = bias (learned), relations r: N B as in `multi_positive_loss`; pairs of 0 add nothing.
    """
    logits = F.normalize(t, dim=-1) @ F.normalize(v, dim=-1).T / temperature + bias  # N B
    return -(F.logsigmoid(relations * logits) * (relations != 0)).sum() / len(v)


# --- relations: which texts match which images --------------------------------------------------------------


def text_ids(prompts: Sequence[Prompt]) -> Tensor:
    """Hashes (B 2, int64) of each prompt's caption and of its quoted strings, the same on every machine.

    The second is 0 for a prompt without quoted strings, which shares strings with no other.
    """
    rows = [(derived_seed(p.text), derived_seed(*p.strings) if p.strings else 0) for p in prompts]
    return torch.tensor(rows, dtype=torch.long).reshape(-1, 2)


def diagonal_relations(rows: int, device: torch.device | None = None) -> Tensor:
    """The relations (B B) of a batch in which each text matches its own image only."""
    return 2 * torch.eye(rows, device=device, dtype=torch.long) - 1


def relations_from_ids(ids: Tensor) -> Tensor:
    """The relations (B B) of a batch with these `text_ids` (B 2).

    Equal captions match each other's images. Images with equal strings under different captions are neither positives
    nor negatives of each other: one says "HOUSE" as well as the other.
    """
    captions, strings = ids.unbind(dim=1)
    same_caption = captions[:, None] == captions
    same_strings = (strings[:, None] == strings) & (strings != 0)
    relations = diagonal_relations(len(ids), ids.device).masked_fill(same_strings, 0)
    return relations.masked_fill(same_caption, 1)


@dataclass(frozen=True)
class AugmentedTexts:
    """M augmented texts for each image of a batch.

    pooled: B M D, as t. roles: B M; 1 for a rewording, -1 for a hard negative, 0 for none. captions: B M, the first of
    their `text_ids`.
    """

    pooled: Tensor
    roles: Tensor
    captions: Tensor

    def relations(self, of_batch: Tensor, ids: Tensor) -> Tensor:
        """Their relations (B M, B) to the batch's images, from the relations (B B) and ids (B 2) of the batch.

        A rewording matches what its caption matches. A hard negative matches nothing; if it is, word for word, another
        image's caption, that pair is left out.
        """
        roles, captions = self.roles.flatten(), self.captions.flatten()
        reworded = of_batch.repeat_interleave(self.roles.shape[1], dim=0)  # (B M) B
        opposed = torch.where(captions[:, None] == ids[:, 0], 0, -1)
        return reworded * (roles > 0)[:, None] + opposed * (roles < 0)[:, None]


# --- the head ------------------------------------------------------------------------------------------------


class _ReturningClamp(torch.autograd.Function):
    """clamp(x, low, high) that passes the gradient outside of the range if a step against it leads back inside.

    The gradient of a plain clamp is 0 there: a temperature that one large step moves out of its range would never
    return.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.range = (low, high)
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,), (low, high), gradient = ctx.saved_tensors, ctx.range, gradients[0]
        leads_out = ((x < low) & (gradient > 0)) | ((x > high) & (gradient < 0))
        return gradient.masked_fill(leads_out, 0), None, None


def clamped_temperature(log_temperature: Tensor) -> Tensor:
    """tau from its logarithm, within [0.01, 1]: contrastive losses usually diverge by a runaway temperature."""
    return _ReturningClamp.apply(log_temperature, math.log(MINIMUM_TEMPERATURE), math.log(MAXIMUM_TEMPERATURE)).exp()


class AlignmentHead(nn.Module):
    """Projects t and v into the shared space; has the learned temperature, and the bias of the sigmoid kind.

    `temperature` is tau's initial value; None: 0.07 (CLIP), for the sigmoid kind 0.1 (SigLIP).
    """

    def __init__(
        self,
        text_width: int,
        image_width: int,
        width: int = 128,
        temperature: float | None = None,
        kind: AlignmentKind = "one-directional",
    ) -> None:
        super().__init__()
        self.kind = kind
        self.from_text = nn.Linear(text_width, width, bias=False)
        self.from_image = nn.Linear(image_width, width, bias=False)
        if temperature is None:
            temperature = 0.1 if kind == "sigmoid" else 0.07
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.bias = nn.Parameter(torch.tensor(SIGMOID_BIAS)) if kind == "sigmoid" else None

    @property
    def temperature(self) -> Tensor:
        """tau, clamped."""
        return clamped_temperature(self.log_temperature)

    def learned_scalars(self) -> dict[str, Tensor]:
        """For the logs: the temperature, and the bias if there is one; no gradients."""
        found = {"temperature": self.temperature.detach()}
        return found if self.bias is None else {**found, "bias": self.bias.detach()}

    def embed_texts(self, t: Tensor) -> Tensor:
        """Pooled text states (B D) in the shared space, as unit vectors."""
        return F.normalize(self.from_text(t.float()), dim=-1)

    def embed_images(self, v: Tensor) -> Tensor:
        """Image embeddings (B D) in the shared space, as unit vectors."""
        return F.normalize(self.from_image(v.float()), dim=-1)

    def forward(
        self, t: Tensor, v: Tensor, ids: Tensor | None = None, augmented: AugmentedTexts | None = None
    ) -> Tensor:
        """L_align over the batch of all ranks, of pooled text states B D and image embeddings B D.

        The multi-positive kind and `augmented` texts need `ids` (B 2, see `text_ids`); the one-directional kind takes
        no augmented texts. M is the same on every rank.
        """
        texts = gather_with_gradient(self.from_text(t.float()))
        images = gather_with_gradient(self.from_image(v.float()))
        if self.kind == "one-directional":
            assert augmented is None, "the one-directional kind compares no image with several texts"
            return contrastive_loss(texts, images, self.temperature)
        if self.kind == "symmetric" and augmented is None:
            return symmetric_loss(texts, images, self.temperature)
        relations = diagonal_relations(len(texts), texts.device)  # B B
        if ids is not None:
            ids = gather_with_gradient(ids.to(texts.device))
        if self.kind == "multi-positive":
            assert ids is not None
            relations = relations_from_ids(ids)
        if augmented is not None:
            assert ids is not None
            augmented = AugmentedTexts(
                gather_with_gradient(self.from_text(augmented.pooled.float())),
                gather_with_gradient(augmented.roles.to(texts.device)),
                gather_with_gradient(augmented.captions.to(texts.device)),
            )
            texts = torch.cat([texts, augmented.pooled.flatten(0, 1)])  # (B + B M) D
            relations = torch.cat([relations, augmented.relations(relations, ids)])
        if self.bias is not None:
            return sigmoid_loss(texts, images, self.temperature, self.bias, relations)
        return multi_positive_loss(texts, images, self.temperature, relations)
