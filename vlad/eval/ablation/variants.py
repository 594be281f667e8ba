"""Table II's variants: the same training without one part each, with the same budget of steps.

No variant changes what the autoencoder's stage sees: the variants of a seed share the one of the full method.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlad.config.schema import Config
from vlad.training.parts import TRAINED
from vlad.utils.errors import UserError

FULL = "full"
AUTOENCODER = "autoencoder"  # the stage that variants share
METRICS = "metrics.json"  # of a stage: it exists once the stage is done


@dataclass(frozen=True)
class Variant:
    """One row: its name, its overrides, and the paper's figures of the same row (FID, CLIPScore, OCR F)."""

    name: str
    title: str
    overrides: tuple[str, ...]
    published: tuple[float, float, float] | None = None


def variants(config: Config) -> tuple[Variant, ...]:
    """The rows of the table. Without a layout stage, its steps go to the refine stage, so that budgets are equal."""
    if config.base is not None or config.layout.kind == "none" or config.composition.kind == "none":
        raise UserError(
            "An ablation starts from the whole method, and this config has a base, or parts of the method turned"
            " off; name another one, such as configs/tiny.yaml."
        )
    if config.losses.align_weight == 0 or not config.composition.spelling:
        off = "losses.align_weight=0" if config.losses.align_weight == 0 else "composition.spelling=false"
        raise UserError(f"{off} makes two rows of the table the same; leave it out.")
    steps = config.train.layout.steps + config.train.refine.steps
    return (
        Variant(FULL, "full", (), (35.12, 0.352, 0.879)),
        Variant("no-ccm", "without CCM", ("composition.kind=none",), (39.12, 0.342, 0.812)),
        Variant(
            "no-layout",
            "without hierarchical guidance",
            ("layout.kind=none", f"train.refine.steps={steps}"),
            (37.45, 0.345, 0.835),
        ),
        Variant("no-alignment", "without alignment loss", ("losses.align_weight=0",)),
        Variant("no-spelling", "without spelling tokens", ("composition.spelling=false",)),
    )


def run_overrides(config: Config, variant: Variant, seed: int, given: Sequence[str]) -> list[str]:
    """The overrides of one run's config, the user's own first."""
    return [*given, *variant.overrides, f"name={config.name}-ablation-{variant.name}-{seed}", f"seed={seed}"]


def autoencoder_is_done(run: Path) -> bool:
    """Whether a run's autoencoder stage can be shared."""
    return (run / AUTOENCODER / METRICS).is_file()


def share_autoencoder(source: Path, target: Path) -> bool:
    """Copies the finished autoencoder stage of a run into another run's directory, which then starts after it.

    Returns False where there is none to share, or where the other run has begun its own. The copy gets its name once it
    is whole: an interrupted one is made again.
    """
    finished, own = source / AUTOENCODER, target / AUTOENCODER
    if own.exists() or not autoencoder_is_done(source):
        return False
    temporary = target / f"{AUTOENCODER}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name in (TRAINED, METRICS):
        shutil.copyfile(finished / name, temporary / name)
    temporary.rename(own)
    return True
