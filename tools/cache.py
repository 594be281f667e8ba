"""Computes beforehand what frozen models say of every sample: python tools/cache.py CONFIG --out DIR [key=value ...]

The autoencoder's latents of images and glyph maps; with trainable.lvlm=frozen the LVLM's states and image embeddings
too. Then train with data.cache=DIR. Interrupted, the same command goes on after the last whole shard.
"""

from __future__ import annotations

import argparse

from vlad.utils.command_line import run_command_line
from vlad.utils.errors import UserError
from vlad.utils.locks import directory_lock
from vlad.utils.paths import checked_path, writable_directory


def main() -> int:
    parser = argparse.ArgumentParser(description="Caches latents, and a frozen LVLM's states, of a config's shards.")
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--out", required=True, help="the directory for the companion shards")
    arguments = parser.parse_args()

    from vlad.config.load import load_config

    if not arguments.out.strip() or "://" in arguments.out:
        raise UserError(f"--out must name a directory of this machine for the cache, not {arguments.out!r}.")
    out = checked_path(arguments.out, "--out")
    config = load_config(arguments.config, arguments.overrides)

    import torch
    from tqdm import tqdm

    from vlad.data.latent_cache.precompute import write_cache
    from vlad.data.shard_sets import open_sets
    from vlad.training.caching import cache_encoder, cache_fingerprint, cacheable_parts

    if config.data.mix:
        raise UserError("data.mix: a cache is of one shard set; name it as data.shards.")
    sets = open_sets(config.data.sets, config.data.fetch)
    parts = cacheable_parts(config)
    writable_directory(out, "a cache", needed_bytes=sets.samples * 10_000)
    device = torch.device("cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu")
    encode = cache_encoder(config, parts, device)
    fingerprint = cache_fingerprint(config, parts, sets)
    with directory_lock(out, "a cache"), tqdm(total=sets.samples, desc="caching", unit="sample") as bar:
        count = write_cache(
            sets,
            config.data.stream(config.seed),
            encode,
            out,
            fingerprint,
            bar.update,
            out / "quarantine.jsonl",
        )
    print(f"{count} of {sets.samples} samples cached in {out}; train with data.cache={out}")
    return 0


if __name__ == "__main__":
    run_command_line(main)
