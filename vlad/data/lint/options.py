"""Options of a lint run over shards."""

from __future__ import annotations

from dataclasses import dataclass

from vlad.data.buckets import Bucket, build_buckets
from vlad.utils.errors import UserError, counted

MAX_SIDE_PIXELS = 16384  # of a training image


@dataclass(frozen=True)
class LintOptions:
    """What to count in a set of shards, and how much of it the report keeps."""

    # Training resolutions, each the side of a square of equal area; without any, no buckets are counted.
    resolutions: tuple[int, ...] = (512,)
    max_aspect: float = 2.0
    bucket_step_pixels: int = 64
    # The launch that the set has to suffice for; None: no launch.
    launch: Launch | None = None
    # Examples of each kind of finding, images of sound samples, and images of each kind of finding.
    examples: int = 20
    images: int = 25
    images_per_kind: int = 6

    def __post_init__(self) -> None:
        if not 1 <= self.max_aspect <= 16:
            raise UserError(f"--max-aspect must be from 1 to 16, not {self.max_aspect}.")
        if not all(1 <= pixels <= MAX_SIDE_PIXELS for pixels in (self.bucket_step_pixels, *self.resolutions)):
            raise UserError(f"--resolutions and --bucket-step must be from 1 to {MAX_SIDE_PIXELS} pixels.")

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The training shapes of all resolutions. Raises UserError for a resolution that fits no bucket step."""
        try:
            return build_buckets(self.resolutions, self.max_aspect, self.bucket_step_pixels) if self.resolutions else ()
        except UserError as error:  # it names keys of a config
            said = str(error).removeprefix("data: ").replace("data.bucket_step_pixels", "--bucket-step")
            raise UserError(f"--resolutions: {said}") from error


@dataclass(frozen=True)
class Launch:
    """The size of a training run that is to read the set."""

    ranks: int = 1
    batch_size: int = 64

    def __post_init__(self) -> None:
        if min(self.ranks, self.batch_size) < 1:
            raise UserError("--ranks and --batch-size must be at least 1.")

    @property
    def needed_samples(self) -> int:
        """One batch for each rank; shards and workers may be any number, as any worker makes any batch of its rank."""
        return self.ranks * self.batch_size

    def __str__(self) -> str:
        return f"{counted(self.ranks, 'rank')} x batches of {self.batch_size}, any shards and workers"
