"""Prior preservation (DreamBooth, arXiv 2208.12242): images that the base generates, trained beside one's own.

They are generated once, into RUN/prior: shards like any other, with a manifest when they are complete.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vlad.config.schema import Config
from vlad.data.dataset import first_samples
from vlad.data.shard_sets import ShardSets, open_sets
from vlad.data.shards.writer import MANIFEST, shard_entry, write_manifest, write_shards
from vlad.data.splits import mix_sets
from vlad.lora.fingerprint import module_fingerprint
from vlad.pipeline.folders import pipeline_folder, read_pipeline
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.training.devices import run_device
from vlad.training.run_data import RunData
from vlad.types import Sample
from vlad.utils.atomic_files import write_json
from vlad.utils.distributed import derived_seed, is_main_process
from vlad.utils.errors import UserError
from vlad.utils.json_objects import read_object
from vlad.utils.paths import existing_file
from vlad.utils.text_lines import split_lines

PRIOR = "prior"  # folder of a run
BEGUN = "begun.json"  # in it: what is being generated, while its manifest is missing
PRIOR_SHARD = 64  # images: what a killed run loses at most


def with_prior(config: Config, data: RunData) -> RunData:
    """The data with the base's images beside the run's shards; generates them first where they are not there yet."""
    if not config.prior.images:
        return data
    folder = config.directory / PRIOR
    if is_main_process():
        generate_prior(config, data.shards, folder)
    while not (folder / MANIFEST).is_file():
        time.sleep(1)  # for the process that generates
    prior = open_sets({str(folder): 1.0})
    return replace(data, training=mix_sets(data.shards, prior, config.prior.share))


@torch.no_grad()
def generate_prior(config: Config, shards: ShardSets, folder: Path) -> None:
    """Has the base generate the prior's images into shards; whole shards of a killed run are kept.

    Raises UserError when it takes none of the prompts.
    """
    if (folder / MANIFEST).is_file():
        return
    assert config.base is not None
    pipeline = read_pipeline(pipeline_folder(Path(config.base)), "base")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(run_device(config))
    prompts = _usable_prompts(pipeline, _prior_prompts(config, shards))
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
    with tqdm(total=len(numbers), desc="[prior] the base's images", unit="image", disable=None) as bar:
        for shard, start in enumerate(range(0, len(numbers), PRIOR_SHARD)):
            chunk = numbers[start : start + PRIOR_SHARD]
            path = folder / f"{shard:06d}.tar"
            if path.is_file():
                entries.append(shard_entry(path, len(chunk)))
            else:
                samples = _generate(pipeline, prompts, chunk, config.seed)
                entries += write_shards(samples, folder, PRIOR_SHARD, "png", shard)
            bar.update(len(chunk))
    write_manifest(folder, entries, about)
    (folder / BEGUN).unlink()


def _begin(folder: Path, about: dict[str, Any]) -> None:
    """Makes the folder ready, and removes what another base or other prompts have made there."""
    begun = folder / BEGUN
    with contextlib.suppress(OSError, ValueError):  # none, or one that a full disk has cut short
        if read_object(begun) == about:
            return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(begun, about)


def read_prompts(path: str) -> list[str]:
    """The prompts of `prior.prompts`, one a line. Raises UserError for a missing or an empty file."""
    text = existing_file(path, "file of prompts", "name one with a prompt a line").read_text(encoding="utf-8")
    prompts = [line.strip() for line in split_lines(text) if line.strip()]
    if not prompts:
        raise UserError(f"prior.prompts: {path} holds no prompt; write one a line.")
    return prompts


def _prior_prompts(config: Config, shards: ShardSets) -> list[str]:
    if config.prior.prompts is not None:
        return read_prompts(config.prior.prompts)
    without_trigger = ShardSets(shards.indexes, shards.weights, choices=shards.choices)
    samples = first_samples(without_trigger, config.data.stream(config.seed), config.prior.images)
    return list(dict.fromkeys(sample.caption for sample in samples))


def _usable_prompts(pipeline: VLADPipeline, prompts: list[str]) -> list[str]:
    usable, reason = [], ""
    for prompt in prompts:
        try:
            pipeline.check_prompt(prompt)
            usable.append(prompt)
        except UserError as error:
            reason = str(error)
    if not usable:
        raise UserError(
            f"prior: the base takes none of the {len(prompts)} prompts ({reason}); name others with prior.prompts."
        )
    if len(usable) < len(prompts):
        print(f"[prior] {len(prompts) - len(usable)} prompts are left out ({reason})", file=sys.stderr)
    return usable


def _generate(pipeline: VLADPipeline, prompts: list[str], numbers: range, seed: int) -> list[Sample]:
    texts = [prompts[number % len(prompts)] for number in numbers]
    seeds = [derived_seed(seed, "prior", number) % 2**31 for number in numbers]
    generated = pipeline(texts, seeds)
    return [
        Sample(f"prior-{number:08d}", np.asarray(image), text, layout, source="drawn by the base")
        for number, image, text, layout in zip(numbers, generated.images, texts, generated.layouts, strict=True)
    ]
