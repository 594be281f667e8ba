"""What the losses of the text side learn beside it: projections, temperatures, small heads. Sampling needs none."""

from __future__ import annotations

from torch import Tensor, nn

from vlad.losses.contrastive import AlignmentHead
from vlad.losses.matching import MatchingHead
from vlad.losses.regions import RegionHead


class AlignmentHeads(nn.Module):
    """The head of L_align (Eq. 3), and those of the weighted extras that a run has."""

    def __init__(
        self, contrast: AlignmentHead, regions: RegionHead | None = None, matching: MatchingHead | None = None
    ) -> None:
        super().__init__()
        self.contrast = contrast
        self.regions = regions
        self.matching = matching

    def load_fitting(self, stored: dict[str, Tensor]) -> None:
        """Takes over what fits of another run's heads.

        Kinds of L_align differ in their bias, encoders in the width of v, runs in their extras.
        """
        wanted = self.state_dict()
        fitting = {name: x for name, x in stored.items() if name in wanted and x.shape == wanted[name].shape}
        self.load_state_dict({**wanted, **fitting})

    def report(self) -> dict[str, float]:
        """What has been learned in single numbers, for the logs."""
        numbers = self.contrast.report()
        if self.regions is not None:
            numbers["region_temperature"] = self.regions.temperature.item()
        return numbers
