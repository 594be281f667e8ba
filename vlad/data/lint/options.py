"""Options of a lint run over shards."""

from __future__ import annotations

from dataclasses import dataclass

from vlad.data.buckets import Bucket, build_buckets
from vlad.utils.errors import UserError, counted

MOST_PIXELS = 16384  # of a side of a training image


@dataclass(frozen=True)
class LintOptions:
    """What is asked about a set of shards."""

    # Sides of the squares whose area images are trained at; None of them: no buckets are counted.
    resolutions: tuple[int, ...] = (512,)
    max_aspect: float = 2.0
    bucket_step_pixels: int = 64
    # A launch to be judged; None: none.
    launch: Launch | None = None
    # Kept of every kind of finding; images of sound samples drawn, and of each kind of finding.
    examples: int = 20
    images: int = 25
    images_a_kind: int = 6

    def __post_init__(self) -> None:
        if not 1 <= self.max_aspect <= 16:
            raise UserError(f"--max-aspect must be from 1 to 16, not {self.max_aspect}.")
        if not all(1 <= pixels <= MOST_PIXELS for pixels in (self.bucket_step_pixels, *self.resolutions)):
            raise UserError(f"--resolutions and --bucket-step must be from 1 to {MOST_PIXELS} pixels.")

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The shapes of all resolutions. Raises UserError for one that fits no bucket step."""
        try:
            return build_buckets(self.resolutions, self.max_aspect, self.bucket_step_pixels) if self.resolutions else ()
        except UserError as error:  # its words are a config's
            said = str(error).removeprefix("data: ").replace("data.bucket_step_pixels", "--bucket-step")
            raise UserError(f"--resolutions: {said}") from error


@dataclass(frozen=True)
class Launch:
    """A run that shall read the set."""

    ranks: int = 1
    batch_size: int = 64

    def __post_init__(self) -> None:
        if min(self.ranks, self.batch_size) < 1:
            raise UserError("--ranks and --batch-size must be at least 1.")

    @property
    def needed_samples(self) -> int:
        """A batch for every rank. Shards and workers may be any number: any worker makes any batch of its rank."""
        return self.ranks * self.batch_size

    def __str__(self) -> str:
        return f"{counted(self.ranks, 'rank')} x batches of {self.batch_size}, any shards and workers"
