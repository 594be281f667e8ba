"""Every batch loss on two gloo ranks under DDP, against one process with the whole batch.

Also what a loss must not do: average a rank's own terms where their number differs between ranks.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from vlad.losses.contrastive import AlignmentHead, AugmentedTexts, diagonal_relations
from vlad.losses.extra.captioning import captioning_loss
from vlad.losses.extra.image_text_matching import MatchingHead, image_text_matching_loss
from vlad.losses.extra.region_phrase_contrast import RegionHead, Regions
from vlad.utils.distributed import gather_rows_with_gradient, rank, world_size

WORLD, ROWS = 2, 6
MINE = ROWS // WORLD


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def local(x: Tensor) -> Tensor:
    """This rank's rows of the whole batch."""
    return x.chunk(world_size())[rank()]


class Case(nn.Module):
    """Two tiny encoders, so that gradients are seen upstream of the gather too, and a head over them."""

    def __init__(self, head: nn.Module, loss: Callable[[Any, Any], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.text, self.image = nn.Linear(5, 8), nn.Linear(7, 9)
        self.head, self.loss = head, loss

    def forward(self) -> Tensor:
        return self.loss(self, self.head)


def texts(case: Case, seed: int = 1, *shape: int) -> Tensor:
    return case.text(local(draw(seed, ROWS, *shape, 5)))


def images(case: Case, *shape: int) -> Tensor:
    return case.image(local(draw(2, ROWS, *shape, 7)))


IDS = torch.tensor([[1, 7], [2, 0], [3, 0], [4, 7], [1, 7], [5, 0]])  # 0 and 4 are equal, of two ranks; 3 shares 7


def align(case: Case, head: nn.Module) -> Tensor:
    return head(texts(case), images(case), local(IDS))


def align_with_augmented(case: Case, head: nn.Module) -> Tensor:
    roles = torch.tensor([[1, -1], [0, -1], [1, 0], [0, 0], [0, -1], [1, -1]])
    captions = torch.tensor([[1, 5], [0, 9], [3, 0], [0, 0], [0, 8], [5, 9]])  # the first's negative is the last's own
    return head(texts(case), images(case), local(IDS), AugmentedTexts(texts(case, 3, 2), local(roles), local(captions)))


def regions(case: Case, head: nn.Module) -> Tensor:
    # Four regions on the first rank, one on the second; the last phrase was cut off.
    rows, phrases = torch.tensor([0, 0, 2, 1, 3, 5]), torch.tensor([0, 1, 0, 1, 1, 1])
    boxes = draw(5, 6, 4).sigmoid().sort(dim=1).values
    mask = torch.ones(ROWS, 2, dtype=torch.bool)
    mask[5, 1] = False
    mine = rows // (ROWS // world_size()) == rank()
    own = Regions(rows[mine] - rank() * MINE, phrases[mine], boxes[mine], torch.tensor([1, 2, 3, 2, 1, 9])[mine])
    return head(texts(case, 4, 2), local(mask), images(case, 2, 3), own)


def match(case: Case, head: nn.Module) -> Tensor:
    # One process may sample within the halves only, as the ranks do; so near a neighbour is always sampled. The second
    # rank's first row has no negative: ranks have 9 and 7 pairs.
    relations = torch.block_diag(diagonal_relations(MINE), diagonal_relations(MINE))
    relations[3, :], relations[:, 3] = 0, 0
    similarities = 1000 * torch.block_diag(*[torch.tensor([[0.0, 2, 1], [1, 0, 2], [2, 1, 0]])] * 2)
    whole = slice(rank() * MINE, rank() * MINE + ROWS // world_size())
    tokens = texts(case, 4, 3)
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
    return image_text_matching_loss(
        head, tokens, mask, images(case, 2), similarities[whole, whole], relations[whole, whole]
    )


def caption(case: Case, head: nn.Module) -> Tensor:
    mask = torch.arange(4) < torch.tensor([4, 4, 3, 2, 1, 2])[:, None]  # 8 predicted tokens, and 2
    token_ids = torch.arange(ROWS * 4).reshape(ROWS, 4) % 11
    return captioning_loss(texts(case, 4, 4), local(token_ids), local(mask), head.weight)


def caption_averaged_by_rank(case: Case, head: nn.Module) -> Tensor:
    mask = torch.arange(4) < torch.tensor([4, 4, 3, 2, 1, 2])[:, None]
    token_ids = torch.arange(ROWS * 4).reshape(ROWS, 4) % 11
    predicted = local(mask)[:, 1:]
    return F.cross_entropy(head(texts(case, 4, 4)[:, :-1][predicted]), local(token_ids)[:, 1:][predicted])


HEADS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Any], Tensor]]] = {
    **{
        kind: (lambda kind=kind: AlignmentHead(8, 9, width=4, temperature=0.5, kind=kind), align)
        for kind in ("one-directional", "symmetric", "multi-positive", "sigmoid")
    },
    **{
        f"{kind} and augmented texts": (
            lambda kind=kind: AlignmentHead(8, 9, width=4, temperature=0.5, kind=kind),
            align_with_augmented,
        )
        for kind in ("symmetric", "multi-positive", "sigmoid")
    },
    "regions": (lambda: RegionHead(8, 9, width=4, temperature=0.5), regions),
    "matching": (lambda: MatchingHead(8, 9, width=4, heads=2), match),
    "captioning": (lambda: nn.Linear(8, 11, bias=False), caption),
}
AVERAGED_BY_RANK = (lambda: nn.Linear(8, 11, bias=False), caption_averaged_by_rank)


def build(name: str) -> Case:
    torch.manual_seed(0)
    make_head, loss = HEADS.get(name, AVERAGED_BY_RANK)
    return Case(make_head(), loss)


def train_one_rank(number: int, folder: str) -> None:
    """The gradients of every loss as Lightning's DDP strategy makes them, left in the folder."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=number,
        world_size=WORLD,
        timeout=timedelta(minutes=2),
    )
    found = {}
    for name in (*HEADS, "averaged by rank"):
        case = build(name)
        # The image encoder is no part of captioning.
        model = DistributedDataParallel(case, find_unused_parameters="aption" in case.loss.__name__)
        loss = model()
        loss.backward()
        found[name] = (loss.detach(), {key: p.grad for key, p in case.named_parameters() if p.grad is not None})
    own = torch.full((number, 2), float(number))  # none, and one
    found["ragged"] = (gather_rows_with_gradient(own), {})
    torch.save(found, f"{folder}/rank{number}.pt")
    dist.barrier()
    os._exit(0)  # as in tests/test_distributed.py: destroy_process_group can wait for ever


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[Tensor, dict[str, Tensor]]]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(train_one_rank, args=(str(folder),), nprocs=WORLD)
    return [torch.load(Path(folder) / f"rank{number}.pt", weights_only=True) for number in range(WORLD)]


@cache
def one_process(name: str) -> tuple[Tensor, dict[str, Tensor]]:
    case = build(name)
    loss = case()
    loss.backward()
    return loss.detach(), {key: p.grad for key, p in case.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", HEADS)
def test_two_ranks_train_as_one_process_with_the_whole_batch(
    name: str, ranks: list[dict[str, tuple[Tensor, dict[str, Tensor]]]]
) -> None:
    loss, gradients = one_process(name)

    # Gathered losses are the whole batch's on each rank, means over ranks on their average.
    torch.testing.assert_close(sum(found[name][0] for found in ranks) / WORLD, loss, atol=1e-6, rtol=1e-6)
    for found in ranks:
        # DDP leaves zeros where one process leaves nothing.
        assert found[name][1].keys() >= gradients.keys()
        for key, gradient in gradients.items():
            assert gradient.abs().max() > 1e-6
            torch.testing.assert_close(found[name][1][key], gradient, atol=1e-6, rtol=0)


def test_averaging_each_rank_s_own_mean_would_not(
    ranks: list[dict[str, tuple[Tensor, dict[str, Tensor]]]],
) -> None:
    _, gradients = one_process("averaged by rank")
    torch.testing.assert_close(gradients["head.weight"], one_process("captioning")[1]["head.weight"])
    assert (ranks[0]["averaged by rank"][1]["head.weight"] - gradients["head.weight"]).abs().max() > 1e-3


def test_ranks_may_have_any_number_of_rows(ranks: list[dict[str, tuple[Tensor, dict[str, Tensor]]]]) -> None:
    assert all(found["ragged"][0].tolist() == [[1.0, 1.0]] for found in ranks)
