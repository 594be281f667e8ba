"""L_align: the composed text t against the image embedding v of its image (Eq. 3), and the other kinds of it.

    one-directional   texts choose among images                                        Eq. 3
    symmetric         and images among texts                                           CLIP
    multi-positive    the same, where equal captions match and equal strings don't count UniCL, SupCon
    sigmoid           every pair on its own: does it match?                              SigLIP

Further texts of an image may join any kind but the first: rewordings as positives (SemCLIP's idea), captions
with something swapped as hard negatives (NegCLIP).

Over several processes every rank gathers all rows and computes the one loss of the whole batch. The gather's
backward adds up what every rank sends to a row, world size x dL/drow, and DDP's average over ranks takes the
factor out again: no loss here is to be scaled by the world size. A loss that is a mean over a rank's own terms
needs `distributed.mean_over_ranks` instead, where their number differs between ranks.

Letters: B batch (of all ranks where gathered), N texts, M augmented texts an image, D width of the shared space.
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
SIGMOID_BIAS = -10.0  # SigLIP's: at the start a pair of B x B is a negative one


def contrastive_loss(t: Tensor, v: Tensor, temperature: Tensor | float) -> Tensor:
    """Eq. 3: L_align = -mean_i log( exp(cos(t_i, v_i) / tau) / sum_j exp(cos(t_i, v_j) / tau) ); tau = temperature.

    t, v: B D, row i of both from the same sample. One-directional, as in the paper: texts choose among images.
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
    (Khosla et al., 2020, eq. 2). t: N D, v: B D. relations r: N B; 1 the pair matches, -1 it does not, 0 it is left
    out. With the identity in place of r it is CLIP's; with rows that match nothing it is NegCLIP's (Yuksekgonul et
    al., ICLR 2023): such texts stand in the images' denominators and choose no image themselves.
    """
    similarities = F.normalize(t, dim=-1) @ F.normalize(v, dim=-1).T / temperature  # N B
    return (_rows_loss(similarities, relations) + _rows_loss(similarities.T, relations.T)) / 2


def _rows_loss(similarities: Tensor, relations: Tensor) -> Tensor:
    # Not -inf: a row that is left out altogether would have gradients that are no numbers.
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


# --- which texts match which images ------------------------------------------------------------------------


def text_ids(prompts: Sequence[Prompt]) -> Tensor:
    """Numbers (B 2, int64) that are equal where the captions are, and where their strings are; on any machine.

    The second is 0 for a prompt that quotes nothing: it shares no string with another.
    """
    rows = [(derived_seed(p.text), derived_seed(*p.strings) if p.strings else 0) for p in prompts]
    return torch.tensor(rows, dtype=torch.long).reshape(-1, 2)


def paired(rows: int, device: torch.device | None = None) -> Tensor:
    """The relations (B B) of a batch in which each text matches its own image and no other."""
    return 2 * torch.eye(rows, device=device, dtype=torch.long) - 1


def relations_of_texts(ids: Tensor) -> Tensor:
    """The relations (B B) of a batch with these `text_ids` (B 2).

    Equal captions match each other's images. Images of equal strings under different captions are neither a
    match nor a negative: one says "HOUSE" as well as the other.
    """
    captions, strings = ids.unbind(dim=1)
    same_caption = captions[:, None] == captions
    same_strings = (strings[:, None] == strings) & (strings != 0)
    relations = paired(len(ids), ids.device).masked_fill(same_strings, 0)
    return relations.masked_fill(same_caption, 1)


@dataclass(frozen=True)
class AugmentedTexts:
    """M augmented texts for each image of a batch.

    pooled: B M D, as t. roles: B M; 1 a rewording that says the same, -1 a hard negative, 0 there is none.
    captions: B M, the first of their `text_ids`.
    """

    pooled: Tensor
    roles: Tensor
    captions: Tensor

    def relations(self, of_batch: Tensor, ids: Tensor) -> Tensor:
        """Their relations (B M, B) to the batch's images, given those of its own texts (B B, B 2).

        A rewording matches what its caption matches. A hard negative matches nothing; where it is, word for word,
        another image's caption, the pair is left out.
        """
        roles, captions = self.roles.flatten(), self.captions.flatten()
        reworded = of_batch.repeat_interleave(self.roles.shape[1], dim=0)  # (B M) B
        opposed = torch.where(captions[:, None] == ids[:, 0], 0, -1)
        return reworded * (roles > 0)[:, None] + opposed * (roles < 0)[:, None]


# --- the head ------------------------------------------------------------------------------------------------


class _Leash(torch.autograd.Function):
    """clamp(x, low, high) whose gradient, past an end, still passes where a step against it leads back inside.

    Plain clamp's is 0 there: a temperature that one large step has carried out of its range would never return.
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
    """tau of its logarithm, in [0.01, 1]: a runaway temperature is the usual way for a contrastive loss to diverge."""
    return _Leash.apply(log_temperature, math.log(MINIMUM_TEMPERATURE), math.log(MAXIMUM_TEMPERATURE)).exp()


class AlignmentHead(nn.Module):
    """Projects t and v into the shared space; holds the learned temperature, and the bias of the sigmoid kind.

    `temperature` is where tau starts; None: 0.07 (CLIP), for the sigmoid kind 0.1 (SigLIP).
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

    def report(self) -> dict[str, float]:
        """What the head has learned in single numbers, for the logs: temperature, and bias where there is one."""
        numbers = {"temperature": self.temperature.item()}
        return numbers if self.bias is None else {**numbers, "bias": self.bias.item()}

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

        `ids` (B 2, see `text_ids`) are needed by the multi-positive kind and with `augmented` texts, which the
        one-directional kind has no place for. M is the same on every rank.
        """
        texts = gather_with_gradient(self.from_text(t.float()))
        images = gather_with_gradient(self.from_image(v.float()))
        if self.kind == "one-directional":
            assert augmented is None, "texts that choose among images never meet augmented texts"
            return contrastive_loss(texts, images, self.temperature)
        if self.kind == "symmetric" and augmented is None:
            return symmetric_loss(texts, images, self.temperature)
        relations = paired(len(texts), texts.device)  # B B
        if ids is not None:
            ids = gather_with_gradient(ids.to(texts.device))
        if self.kind == "multi-positive":
            assert ids is not None
            relations = relations_of_texts(ids)
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
