"""Initial noise: normal, of every bit of its seed, and as ever for seeds that torch takes whole."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from vlad.pipeline.batching import initial_noise

SHAPE = (4, 32, 32)


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1])
def test_seeds_of_31_bits_keep_their_noise(seed: int) -> None:
    (noise,) = initial_noise([seed], None, SHAPE)
    for stage, values in enumerate((noise.layout, noise.refine)):
        assert torch.equal(values, torch.randn(SHAPE, generator=torch.Generator().manual_seed(2 * seed + stage)))


def test_every_bit_of_a_seed_counts() -> None:
    seeds = [7, *(7 + 2**bit for bit in range(3, 63)), 2**63 - 1]
    noises = initial_noise(seeds, None, SHAPE)
    tensors = [values for noise in noises for values in (noise.layout, noise.refine)]
    assert all(not torch.equal(one, other) for one, other in combinations(tensors, 2))
    for values in tensors:
        assert abs(float(values.mean())) < 0.1
        assert abs(float(values.std()) - 1) < 0.1
