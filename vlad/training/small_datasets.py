"""Small sets of a person's own: some images held out, the rest repeated and called by a word, the base's own beside.

shards --+-- held out (validation.share) ----------------------------> looks at what was never trained on
         +-- the rest, data.repeats times, with data.trigger_word --+--> training
base -- draws prior.images, once, into RUN/prior -----------------+
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vlad.config.schema import Config
from vlad.data.dataset import first_samples
from vlad.data.shard_sets import ShardSets, check_enough_samples, open_sets
from vlad.data.shards.writer import MANIFEST, shard_entry, write_manifest, write_shards
from vlad.data.splits import hold_out, mix_sets, prefix_captions, repeat_samples
from vlad.lora.fingerprint import module_fingerprint
from vlad.pipeline.folders import pipeline_folder, read_pipeline
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.types import Sample
from vlad.utils.distributed import derived_seed, is_main_process
from vlad.utils.errors import UserError, counted
from vlad.utils.paths import existing_file

PRIOR = "prior"  # folder of a run
BEGUN = "begun.json"  # in it: what is being drawn, while its manifest is missing
PRIOR_SHARD = 64  # images: what a killed run loses at most
CHECKED_SAMPLES = 64  # read for a line of text where no manifest says how many there are


@dataclass(frozen=True)
class OwnSets:
    """A run's shards: what is trained on, and of it the person's own; what is held out (None: nothing)."""

    training: ShardSets
    own: ShardSets
    held_out: ShardSets | None


def own_sets(config: Config, sets: ShardSets) -> OwnSets:
    """The shards of a run, held out, repeated and named as its options say; without the base's own images.

    Raises UserError for options that contradict each other, and for fewer images than a batch.
    """
    _check(config)
    held_out = None
    if config.validation.share:
        whole = sets
        sets, held_out = hold_out(sets, config.validation.share, config.seed)
        _refuse_held_out_too_many(config, whole, sets)
    sets = repeat_samples(sets, config.data.repeats)
    if config.data.trigger_word is not None:
        prefix = config.data.trigger_word.strip(" ,")
        sets = prefix_captions(sets, prefix)
        held_out = None if held_out is None else prefix_captions(held_out, prefix)
    check_enough_samples(sets, config.data.batch_size, 1)
    return OwnSets(sets, sets, held_out)


def _refuse_held_out_too_many(config: Config, whole: ShardSets, rest: ShardSets) -> None:
    """Raises UserError where a set fills a batch, and what is not held out of it does not."""
    repeats, batch = config.data.repeats, config.data.batch_size
    for number, index in enumerate(whole.indexes):
        left = len(rest.chosen(number))
        if index.samples * repeats >= batch > left * repeats:
            most = math.floor(100 * (1 - -(-batch // repeats) / index.samples)) / 100
            raise UserError(
                f"validation.share: {config.validation.share:g} of {counted(index.samples, 'image')} leaves {left} to"
                f" train on, fewer than a batch (data.batch_size={batch}); hold out at most {most:g}, lower"
                f" data.batch_size, or read each several times an epoch: data.repeats={-(-batch // left)}."
            )


def _check(config: Config) -> None:
    data, prior = config.data, config.prior
    asked = {
        "validation.share": bool(config.validation.share),
        "data.trigger_word": data.trigger_word is not None,
        "data.repeats": data.repeats > 1,
        "prior.images": prior.images > 0,
    }
    for name, is_asked in asked.items():
        if is_asked and data.cache is not None:
            raise UserError(f"{name} does not go with data.cache, which holds all samples as they are; leave one out.")
    if not prior.images:
        return
    if config.base is None:
        raise UserError("prior.images: there is no base to draw them; add base=runs/NAME, or set prior.images=0.")
    if prior.images < data.batch_size:
        raise UserError(
            f"prior.images: {prior.images} are fewer than a batch; draw at least data.batch_size={data.batch_size}."
        )
    if prior.prompts is None and data.trigger_word is None:
        raise UserError(
            "prior.images: without a trigger word your captions would ask for your images and for the base's alike;"
            " set data.trigger_word, or name other prompts with prior.prompts=FILE."
        )
    if prior.prompts is not None:
        _prompts_of_file(prior.prompts)


def _prompts_of_file(path: str) -> list[str]:
    text = existing_file(path, "file of prompts", "name one with a prompt a line").read_text(encoding="utf-8")
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"prior.prompts: {path} holds no prompt; write one a line.")
    return prompts


def refuse_without_text(config: Config, sets: ShardSets) -> None:
    """Raises UserError for shards without a line of text in a run that learns where text stands."""
    if config.layout.kind == "none":
        return
    statistics = [shard.statistics for index in sets.indexes for shard in index.shards]
    if all(known is not None and "valid_lines" in known for known in statistics):
        lines = sum(int(known["valid_lines"]) for known in statistics if known is not None)
    else:
        samples = first_samples(sets, config.data.stream(config.seed), CHECKED_SAMPLES)
        if not samples:
            raise UserError(
                f"{sets.option}: not one sample of {', '.join(config.data.sets)} can be used; python"
                " tools/validate_shards.py SHARDS says what is wrong with them."
            )
        lines = sum(line.valid for sample in samples for line in sample.layout.lines)
    if not lines:
        raise UserError(
            f"{sets.option}: not one line of text is annotated in {', '.join(config.data.sets)}, and layouts are"
            " learned from them; have an OCR engine read the images (python tools/make_shards.py FOLDER --out"
            " SHARDS), or write `lines` into their records (docs/data.md)."
        )


def with_prior(config: Config, sets: OwnSets) -> OwnSets:
    """The sets with the base's own images beside them; drawn first where they are not there yet."""
    if not config.prior.images:
        return sets
    folder = config.directory / PRIOR
    if is_main_process():
        draw_prior(config, sets.own, folder)
    while not (folder / MANIFEST).is_file():
        time.sleep(1)  # for the process that draws
    prior = open_sets({str(folder): 1.0})
    return OwnSets(mix_sets(sets.own, prior, config.prior.share), sets.own, sets.held_out)


@torch.no_grad()
def draw_prior(config: Config, own: ShardSets, folder: Path) -> None:
    """Has the base draw the prior's images into shards; what was drawn before a run was killed is kept.

    Raises UserError when it can draw none of the prompts.
    """
    if (folder / MANIFEST).is_file():
        return
    assert config.base is not None
    pipeline = read_pipeline(pipeline_folder(Path(config.base)), "base")
    pipeline.set_progress_bar_config(disable=True)
    if torch.cuda.is_available() and config.trainer.accelerator != "cpu":
        pipeline.to("cuda")
    prompts = _drawable(pipeline, _prior_prompts(config, own))
    about = {
        "made_by": "prior preservation",
        "base": config.base,
        "refine_unet": module_fingerprint(pipeline.refine_unet),
        "images": config.prior.images,
        "seed": config.seed,
        "prompts": prompts,
    }
    _begin(folder, about)
    entries: list[dict[str, Any]] = []
    numbers = range(config.prior.images)
    with tqdm(total=len(numbers), desc="[prior] the base's own images", unit="image", disable=None) as bar:
        for shard, start in enumerate(range(0, len(numbers), PRIOR_SHARD)):
            chunk = numbers[start : start + PRIOR_SHARD]
            path = folder / f"{shard:06d}.tar"
            if path.is_file():
                entries.append(shard_entry(path, len(chunk)))
            else:
                entries += write_shards(
                    _drawn(pipeline, prompts, chunk, config.seed), folder, PRIOR_SHARD, "png", shard
                )
            bar.update(len(chunk))
    write_manifest(folder, entries, about)
    (folder / BEGUN).unlink()


def _begin(folder: Path, about: dict[str, Any]) -> None:
    """Makes the folder ready; what another base or other prompts have made there goes."""
    begun = folder / BEGUN
    if begun.is_file() and json.loads(begun.read_text(encoding="utf-8")) == about:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    temporary = begun.with_suffix(".partial")
    temporary.write_text(json.dumps(about), encoding="utf-8")
    temporary.replace(begun)


def _prior_prompts(config: Config, own: ShardSets) -> list[str]:
    if config.prior.prompts is not None:
        return _prompts_of_file(config.prior.prompts)
    plain = ShardSets(own.indexes, own.weights, choices=own.choices)  # without the trigger word
    samples = first_samples(plain, config.data.stream(config.seed), config.prior.images)
    return list(dict.fromkeys(sample.caption for sample in samples))


def _drawable(pipeline: VLADPipeline, prompts: list[str]) -> list[str]:
    drawable, reason = [], ""
    for prompt in prompts:
        try:
            pipeline.check_prompt(prompt)
            drawable.append(prompt)
        except UserError as error:
            reason = str(error)
    if not drawable:
        raise UserError(
            f"prior: the base can draw none of the {len(prompts)} prompts ({reason}); name others with prior.prompts."
        )
    if len(drawable) < len(prompts):
        print(f"[prior] {len(prompts) - len(drawable)} prompts are left out ({reason})", file=sys.stderr)
    return drawable


def _drawn(pipeline: VLADPipeline, prompts: list[str], numbers: range, seed: int) -> list[Sample]:
    texts = [prompts[number % len(prompts)] for number in numbers]
    seeds = [derived_seed(seed, "prior", number) % 2**31 for number in numbers]
    drawn = pipeline(texts, seeds)
    return [
        Sample(f"prior-{number:08d}", np.asarray(image), text, layout, source="drawn by the base")
        for number, image, text, layout in zip(numbers, drawn.images, texts, drawn.layouts, strict=True)
    ]
