"""What is known about a set of shards, and what was asked about it."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field

from vlad.data.buckets import Bucket, build_buckets
from vlad.data.lint.contact_sheets import Card
from vlad.data.lint.findings import KINDS, Finding
from vlad.data.lint.shard_listing import ShardSet
from vlad.data.lint.statistics import Counts
from vlad.utils.errors import UserError, counted

MOST_PIXELS = 16384  # of a side of a training image


@dataclass(frozen=True)
class ValidationOptions:
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


@dataclass
class Report:
    """What is known about a set; `interrupted` says that only a part of it was looked at."""

    shard_set: ShardSet
    options: ValidationOptions
    quick: bool = False
    interrupted: bool = False
    shards: int = 0
    counts: Counts = field(default_factory=Counts)
    found: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Finding]] = field(default_factory=dict)
    # Cards of sound samples (at most options.images, as a heap by -rank), and of findings by kind.
    sound_cards: list[tuple[float, int, Card]] = field(default_factory=list)
    finding_cards: dict[str, list[Card]] = field(default_factory=dict)
    drawn_sound: int = 0
    # From the manifests, in a quick report: their own sums.
    scripts: Counter[str] = field(default_factory=Counter)

    @property
    def samples(self) -> int:
        """How many samples the set has, so far as known."""
        return self.counts.samples

    @property
    def is_sound(self) -> bool:
        """Whether nothing was found."""
        return not self.found

    def note(self, finding: Finding) -> None:
        """Counts a finding, and keeps it while there are few of its kind."""
        self.found[finding.kind] += 1
        kept = self.examples.setdefault(finding.kind, [])
        if len(kept) < self.options.examples:
            kept.append(finding)

    def keep(self, card: Card) -> None:
        """Keeps a drawn sample where there is room for it."""
        if not card.faults:
            self.drawn_sound += 1
            heapq.heappush(self.sound_cards, (-card.rank, self.drawn_sound, card))
            if len(self.sound_cards) > self.options.images:
                heapq.heappop(self.sound_cards)
        for kind in dict.fromkeys(kind for kind, _ in card.faults):
            kept = self.finding_cards.setdefault(kind, [])
            if len(kept) < self.options.images_a_kind:
                kept.append(card)

    @property
    def drawn_below(self) -> float:
        """The rank that a sound sample must be under to be drawn."""
        if not self.options.images:
            return 0.0
        return 1.0 if len(self.sound_cards) < self.options.images else -self.sound_cards[0][0]

    @property
    def room(self) -> dict[str, int]:
        """How many images more are wanted of each kind of finding."""
        return {kind: self.options.images_a_kind - len(self.finding_cards.get(kind, ())) for kind in KINDS}

    def cards(self) -> list[tuple[str, list[Card]]]:
        """The drawn samples under their headings."""
        sound = [card for _, _, card in sorted(self.sound_cards, key=lambda entry: -entry[0])]
        groups = [("sound samples from all over the set", sound)]
        groups += [(description, self.finding_cards.get(kind, [])) for kind, description in KINDS.items()]
        return [(heading, cards) for heading, cards in groups if cards]

    @property
    def too_small_for(self) -> str | None:
        """Why the launch that is asked about cannot be; None: it can, or none is asked about."""
        launch = self.options.launch
        if launch is None or self.samples >= launch.needed_samples:
            return None
        return (
            f"{counted(self.samples, 'sample')} {'is' if self.samples == 1 else 'are'} too few for"
            f" {counted(launch.ranks, 'rank')} x batches of {launch.batch_size}: at least {launch.needed_samples}; add"
            " samples, or lower one of the two"
        )
