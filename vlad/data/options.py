"""Options of the data: shards and mixtures, batches and buckets, the shard cache, rendered signs, making shards."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vlad.data.words import known_words
from vlad.utils.errors import UserError

if TYPE_CHECKING:
    from vlad.data.buckets import Bucket

MAX_RETRIES, DAY_SECONDS = 1000, 86400


@dataclass(frozen=True)
class FetchOptions:
    """How remote shards are fetched, and how they are kept in the shard cache."""

    # None: the user's cache directory ($XDG_CACHE_HOME or ~/.cache), in vlad/shards. Shared by all runs of a machine.
    directory: str | None = None
    # The least recently read shards are removed above this; those in use are kept in any case.
    max_bytes: int = 20_000_000_000
    # Tries after the first.
    retries: int = 5
    # The wait before the second try; it doubles before each further one, with jitter of +-50 %.
    backoff_seconds: float = 0.5
    # The longest wait for a connection, and for the next bytes.
    timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or not 0 < self.timeout_seconds <= DAY_SECONDS:
            raise UserError(
                f"data.fetch: max_bytes must be above 0, and timeout_seconds above 0 and at most a day ({DAY_SECONDS})."
            )
        if not 0 <= self.retries <= MAX_RETRIES or not 0 <= self.backoff_seconds <= DAY_SECONDS:
            raise UserError(
                f"data.fetch: retries must be from 0 to {MAX_RETRIES}, and backoff_seconds from 0 to a day"
                f" ({DAY_SECONDS})."
            )


MAX_WORKERS = 512  # processes of a rank


MAX_PIXELS = 16384  # of a side of a training image


@dataclass(frozen=True)
class BatchOptions:
    """How shards become batches."""

    # The side of training images, of the square of the same area where buckets are used.
    image_pixels: int = 64
    # Sides of the squares whose areas are the training resolutions; empty: image_pixels alone.
    resolutions: tuple[int, ...] = ()
    # 1: images are stretched to squares (as AnyWord does). Above 1: cropped to aspect ratio buckets up to this ratio.
    max_aspect: float = 1.0
    # The sides of buckets are multiples of it.
    bucket_step_pixels: int = 64
    # The font of glyph maps: `mono-bold`, a cell a letter; `proportional`, for images in proportional type; `typeface`,
    # each line in the typeface that its annotation names, as those of rendered posters do.
    glyph_font: Literal["mono-bold", "proportional", "typeface"] = "mono-bold"
    # Samples per rank and batch.
    batch_size: int = 64
    # Decoding processes per rank; 0: the training process itself.
    workers: int = 1
    # Samples that are shuffled among each other, after the shards are shuffled anew each epoch; 0 or 1: shards alone.
    shuffle_window: int = 2000
    # Above this share of samples that cannot be used the run stops.
    max_bad_share: float = 0.05
    # Compare each shard with the checksum in its manifest when it is first opened.
    verify: bool = True
    # Remote shards.
    fetch: FetchOptions = field(default_factory=FetchOptions)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.shuffle_window < 0:
            raise UserError("data: batch_size must be at least 1, and shuffle_window not negative.")
        if not 0 <= self.workers <= MAX_WORKERS:
            raise UserError(
                f"data.workers must be from 0 to {MAX_WORKERS}, not {self.workers}: each is a process; take about one"
                " a core."
            )
        if not 1 <= self.max_aspect <= 16 or not 0 <= self.max_bad_share <= 1:
            raise UserError("data: max_aspect must be from 1 to 16, and max_bad_share a share, 0 to 1.")
        if not all(1 <= side <= MAX_PIXELS for side in (self.image_pixels, *self.resolutions)):
            raise UserError(f"data: image_pixels and resolutions must be from 1 to {MAX_PIXELS}.")
        if not 1 <= self.bucket_step_pixels <= MAX_PIXELS:
            raise UserError(f"data: bucket_step_pixels must be from 1 to {MAX_PIXELS}, not {self.bucket_step_pixels}.")

    @property
    def stretches(self) -> bool:
        """Whether images are stretched to squares, not cropped to aspect ratio buckets."""
        return self.max_aspect == 1

    @property
    def shapes(self) -> tuple[Bucket, ...]:
        """The shapes of batches."""
        from vlad.data.buckets import Bucket, build_buckets  # it imports numpy and Pillow

        sides = self.resolutions or (self.image_pixels,)
        if self.stretches:
            return tuple(Bucket(side, side, side) for side in sorted(set(sides)))
        return build_buckets(sides, self.max_aspect, self.bucket_step_pixels)


@dataclass(frozen=True)
class StreamOptions(BatchOptions):
    """Batch options with the seed of the order."""

    # Of the shuffle.
    seed: int = 0


MAX_LINE_LETTERS, MAX_SIGN_PIXELS = 64, 8192


@dataclass(frozen=True)
class SyntheticOptions:
    """How signs are rendered. Lengths are shares of the image's width."""

    # Signs of the training set.
    count: int = 24000
    # The side of an image.
    size_pixels: int = 64
    # The set: signs are a function of the options, this seed and their index.
    seed: int = 0
    # The shortest line.
    min_letters: int = 3
    # The longest line.
    max_letters: int = 8
    # The widest cell of a letter.
    max_letter_width: float = 0.2
    # A letter's cell is narrower than the widest that fits by up to this share.
    size_jitter: float = 0.15
    # The least height of a capital over the width of its cell.
    min_letter_aspect: float = 1.3
    # The largest height of a capital over the width of its cell.
    max_letter_aspect: float = 1.7
    # The largest distance of a line from the centre of the position that its caption names.
    place_jitter: float = 0.04
    # Probabilities of one, two and three lines.
    line_shares: tuple[float, float, float] = (0.85, 0.12, 0.03)
    # Probability of a random string instead of a training word.
    random_string_share: float = 0.7
    # Probability that a random string has digits among its letters.
    digit_share: float = 0.1
    # Probability that the background is not plain.
    ground_share: float = 0.2
    # Probability that the caption names the text's colour.
    colour_named_share: float = 0.7
    # Probability that the caption names the text's position.
    place_named_share: float = 0.7

    def __post_init__(self) -> None:
        if not 1 <= self.min_letters <= self.max_letters <= MAX_LINE_LETTERS:
            raise UserError(
                f"data.synthetic: min_letters ({self.min_letters}) must be at least 1 and at most max_letters"
                f" ({self.max_letters}), and that at most {MAX_LINE_LETTERS}, as many as a line has room for."
            )
        if not 16 <= self.size_pixels <= MAX_SIGN_PIXELS or self.count < 1 or self.seed < 0:
            raise UserError(
                f"data.synthetic: size_pixels must be from 16 to {MAX_SIGN_PIXELS}, count at least 1, seed not"
                " negative."
            )
        if not 0 < self.max_letter_width <= 1 or not 0 <= self.size_jitter < 1 or not 0 <= self.place_jitter <= 1:
            raise UserError(
                "data.synthetic: max_letter_width must be above 0 and at most 1, size_jitter at least 0 and under 1,"
                " and place_jitter from 0 to 1."
            )
        if not 0.1 <= self.min_letter_aspect <= self.max_letter_aspect <= 10:
            raise UserError(
                f"data.synthetic: min_letter_aspect ({self.min_letter_aspect}) must be at least 0.1 and at most"
                f" max_letter_aspect ({self.max_letter_aspect}), and that at most 10."
            )
        shares = ("random_string_share", "digit_share", "ground_share", "colour_named_share", "place_named_share")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"data.synthetic.{name} must be a share, 0 to 1, not {getattr(self, name)}.")
        if self.random_string_share < 1 and not known_words(self.min_letters, self.max_letters):
            raise UserError(
                f"data.synthetic: no training word has {self.min_letters} to {self.max_letters} letters; widen"
                " min_letters and max_letters, or set random_string_share to 1."
            )
        if len(self.line_shares) != 3 or abs(sum(self.line_shares) - 1) > 1e-6 or min(self.line_shares) < 0:
            raise UserError(
                f"data.synthetic.line_shares must be three shares that add up to 1, not {self.line_shares}."
            )


@dataclass(frozen=True)
class PosterOptions:
    """How posters are rendered (`vlad/data/posters`)."""

    # How many posters the set holds.
    count: int = 60000
    # The side of the square images.
    size_pixels: int = 128
    # The set: posters are a function of the options, this seed and their index.
    seed: int = 0
    # The fewest lines of text on a poster.
    min_lines: int = 1
    # The most, up to 6.
    max_lines: int = 4
    # The longest line, in characters.
    max_characters: int = 16
    # Height of the smallest capitals, as a share of the image's: OCR engines fail below about 7 pixels of 128.
    min_letter_height: float = 0.06
    # From 0 (plain backgrounds, straight lines) to 1 (textures, objects, outlines, shadows, slants, arcs).
    density: float = 0.5
    # The share of words that are letters at random rather than English words.
    random_string_share: float = 0.4
    # A folder of photographs whose crops become backgrounds; null: none.
    photos: str | None = None
    # The share of posters on a photograph, where a folder is named.
    photo_share: float = 0.3
    # Write the words that training sets never hold: for evaluation sets.
    held_out_words: bool = False
    # Set them in the typefaces that training sets never hold.
    held_out_typefaces: bool = False
    # On the backgrounds that training sets never hold.
    held_out_backgrounds: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.min_lines <= self.max_lines <= 6:
            raise UserError(
                f"data.posters: min_lines ({self.min_lines}) must be at least 1 and at most max_lines"
                f" ({self.max_lines}), and that at most 6."
            )
        if not 64 <= self.size_pixels <= MAX_SIGN_PIXELS or self.count < 1 or self.seed < 0:
            raise UserError(
                f"data.posters: size_pixels must be from 64 to {MAX_SIGN_PIXELS}, count at least 1, seed not negative."
            )
        if not 4 <= self.max_characters <= MAX_LINE_LETTERS:
            raise UserError(
                f"data.posters.max_characters must be from 4 to {MAX_LINE_LETTERS}, not {self.max_characters}."
            )
        if not 0.04 <= self.min_letter_height <= 0.12:
            raise UserError(
                f"data.posters.min_letter_height must be from 0.04 to 0.12 of the image, not {self.min_letter_height}."
            )
        for name in ("density", "random_string_share", "photo_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"data.posters.{name} must be from 0 to 1, not {getattr(self, name)}.")


MAX_REPEATS = 100_000


@dataclass(frozen=True)
class MixedSet:
    """A shard set and its weight in a mixture."""

    # A directory, a glob or a brace pattern of tar files, local or at a URL.
    shards: str = ""
    # Samples are read in proportion to it.
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.shards and not self.weight > 0:
            raise UserError(f"data.mix: the weight of {self.shards} must be positive, not {self.weight}.")


@dataclass(frozen=True)
class DataOptions(BatchOptions):
    """Where the samples come from, and how they become batches."""

    # A directory, a glob or a brace pattern of tar files, local or at a URL.
    shards: str = "data/tiny"
    # A small set that is never trained on, for measurements during training (retrieval).
    held_out: str | None = None
    # Cached latents of these shards (tools/cache.py), for stages with frozen models.
    cache: str | None = None
    # How often an epoch repeats each image, for custom datasets that are smaller than a batch.
    repeats: int = 1
    # A word in front of every caption that calls what a fine-tuned model has learned; None: captions stay.
    trigger_word: str | None = None
    # Several sets, mixed by weight, in place of `shards`.
    mix: list[MixedSet] = field(default_factory=list)
    # The signs that tools/render_shards.py renders.
    synthetic: SyntheticOptions = field(default_factory=SyntheticOptions)
    # The posters that it renders in place of the signs; null: signs.
    posters: PosterOptions | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.repeats <= MAX_REPEATS:
            raise UserError(f"data.repeats must be from 1 to {MAX_REPEATS}, not {self.repeats}.")
        if self.trigger_word is not None and not self.trigger_word.strip(" ,"):
            raise UserError("data.trigger_word is empty; name a word that no prompt holds by chance, or leave it out.")
        # A list for OmegaConf, which checks its elements; a tuple for everyone else.
        object.__setattr__(self, "mix", tuple(self.mix))

    def stream(self, seed: int) -> StreamOptions:
        """The options of a stream of batches."""
        shared = {entry.name: getattr(self, entry.name) for entry in fields(BatchOptions)}
        return StreamOptions(**shared, seed=seed)

    @property
    def sets(self) -> dict[str, float]:
        """The patterns of the shard sets with their weights. Raises UserError for one that is named twice."""
        named = [entry.shards for entry in self.mix]
        if len(set(named)) < len(named) or not all(named):
            raise UserError("data.mix: every set needs shards of its own; name each once, with the sum of its weights.")
        return {entry.shards: entry.weight for entry in self.mix} or {self.shards: 1.0}


# A smaller image holds no text. A strip would be crushed in training, and an OCR engine enlarges its shorter side:
# 32 x 1024 pixels take rapidocr 13 s and 2.8 GB.
MIN_SIDE_PIXELS = 32


@dataclass(frozen=True)
class AnnotateOptions:
    """How an image of a source becomes a sample."""

    # Larger images are downsized until their longer side is this long.
    max_side_pixels: int = 1024
    # The largest number of lines that a composed caption quotes.
    max_strings: int = 3
    # Fit the polygons of lines that the OCR engine read to their ink.
    tight_lines: bool = True
    # Quote the recognised text in the source's own captions too.
    quote_text: bool = False
    image_format: str = "jpg"

    def __post_init__(self) -> None:
        if self.max_side_pixels < MIN_SIDE_PIXELS or self.max_strings < 1:
            raise UserError(
                f"An image needs a max_side_pixels of at least {MIN_SIDE_PIXELS}, and max_strings at least 1."
            )


# What shards are made from, by format.
FORMATS = {
    "folder": "images, with NAME.txt or metadata.jsonl, or with nothing",
    "mario": "MARIO-LAION: folders like 06269/062690093/, or an index file beside them",
    "anyword": 'AnyWord-3M JSON: {"data_list": [{"img_name", ...}]}',
    "laion_glyph": 'LAION-Glyph JSON: [{"img_code", ...}]',
    "mmocr": 'mmocr/ICDAR JSON: {"data_list": [{"img_path", ...}]}',
    "wildreceipt": 'wildreceipt lines: {"file_name", "annotations"}',
    "huggingface": "Parquet or imagefolder through `datasets`, or a data set's name on the hub",
    "webdataset": "tar files with images and captions",
}


@dataclass(frozen=True)
class MakeShardsOptions:
    """What `make_shards` reads, where the shards go, and how they are made."""

    source: str
    out: str  # a directory or URL
    format: str | None = None  # of the source; None: detected
    images: Path | None = None  # the folder of an annotation file's images; None: as the file says, or beside it
    caption_field: str | None = None  # None: the format's own
    annotate: AnnotateOptions = field(default_factory=AnnotateOptions)
    samples_per_shard: int = 1000
    captioner: str | None = None  # a vision-language model that writes captions; None: captions quote the text alone
    captioner_revision: str | None = None
    caption_batch: int = 8
    device: str = "auto"  # of the captioner
    on_ray: bool = False  # on a Ray cluster instead of this machine
    workers: int | None = None  # None: one per core
    resume: bool = False  # the shards must have been begun
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.workers is not None and not 1 <= self.workers <= MAX_WORKERS:
            raise UserError(
                f"--workers must be at least 1 and at most {MAX_WORKERS}, not {self.workers}: each is a process; take"
                " about one a core."
            )
        if self.samples_per_shard < 1:
            raise UserError(f"--samples-per-shard must be at least 1, not {self.samples_per_shard}.")
        if self.caption_batch < 1:
            raise UserError(f"--caption-batch must be at least 1, not {self.caption_batch}.")
