"""Two gloo ranks against one process with the whole batch."""

import os
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from vlad.losses.contrastive import AlignmentHead
from vlad.utils import distributed

WORLD = 2
ROWS = 6  # of both ranks


class TextsAndImages(nn.Module):
    """Two tiny encoders with the head over them: what L_align trains, upstream of the gather too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.text, self.image = nn.Linear(5, 8), nn.Linear(7, 9)
        self.head = AlignmentHead(8, 9, width=4, temperature=0.5)

    def forward(self, texts: Tensor, images: Tensor) -> Tensor:
        return self.head(self.text(texts), self.image(images))


def whole_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, 5, generator=generator), torch.randn(ROWS, 7, generator=generator)


def train_one_rank(rank: int, folder: str) -> None:
    """A backward pass as in Lightning's DDP strategy; the results are saved to the folder."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(minutes=2),  # torch's default of half an hour is long to wait for a lost rank
    )
    model = DistributedDataParallel(TextsAndImages())
    texts, images = (x.chunk(WORLD)[rank] for x in whole_batch())
    loss = model(texts, images)
    loss.backward()
    gathered = distributed.gather_with_gradient(torch.full((2, 3), float(rank)))
    found = {
        "loss": loss.detach(),
        "gradients": {name: p.grad for name, p in model.module.named_parameters()},
        "gathered": gathered,
        "rank": (distributed.rank(), distributed.world_size(), distributed.is_main_process()),
    }
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.barrier()
    # Not by destroy_process_group: torch's destructor holds the GIL while it waits for gloo's thread, which may need
    # the GIL to let go of the last gathered tensor, and both wait forever.
    os._exit(0)


def test_two_ranks_train_as_one_process_with_the_whole_batch(tmp_path: Path) -> None:
    # Each rank computes the loss L of all rows from the gathered ones. The gather's backward adds up what every rank
    # sends to a row, world x dL/drow; DDP's average over the ranks takes the factor out again, and adds the ranks'
    # own rows together: exactly dL/dtheta of the whole batch. The temperature gets dL/dtau on each rank, and their
    # average is dL/dtau. So no loss has to be scaled by the world size.
    model = TextsAndImages()
    loss = model(*whole_batch())
    loss.backward()

    mp.spawn(train_one_rank, args=(str(tmp_path),), nprocs=WORLD)

    for rank in range(WORLD):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["loss"], loss.detach(), atol=1e-6, rtol=0)
        assert found["gradients"].keys() == dict(model.named_parameters()).keys()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 1e-3
            torch.testing.assert_close(found["gradients"][name], parameter.grad, atol=1e-6, rtol=0)
        # Rows stand in the order of the ranks.
        assert found["gathered"][:, 0].tolist() == [0.0, 0.0, 1.0, 1.0]
        assert found["rank"] == (rank, WORLD, rank == 0)


def test_one_process_gathers_itself() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather_with_gradient(x) is x
    assert (distributed.rank(), distributed.world_size()) == (0, 1)


def test_a_derived_seed_is_the_same_everywhere_and_depends_on_every_part() -> None:
    assert (
        distributed.derived_seed(0, "layout") == 5645921674795011939
    )  # not Python's hash, which differs from run to run
    others = [(1, "layout"), (0, "refine"), (0,), ("0", "layout"), (0, "layout", 0), ("layout", 0)]
    assert len({distributed.derived_seed(*parts) for parts in [(0, "layout"), *others]}) == len(others) + 1
    assert all(0 <= distributed.derived_seed(number) < 2**63 for number in range(100))
