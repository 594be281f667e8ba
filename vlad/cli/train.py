"""Verbs on the config of a run: train, plan, doctor, cache, average."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path

from vlad.cli.common_options import add_config
from vlad.cli.verb import Verb
from vlad.utils.command_line import OptionParser, given_command
from vlad.utils.errors import UserError
from vlad.utils.paths import checked_path, writable_directory


def _train(arguments: argparse.Namespace) -> int:
    from vlad.config.checks import check_config
    from vlad.config.load import load_config

    config = load_config(arguments.config, arguments.overrides)
    check_config(config)  # before torch is loaded: a contradiction is reported at once
    from vlad.training.publish import is_finished, next_command
    from vlad.training.run import train
    from vlad.utils.distributed import is_main_process
    from vlad.utils.launcher import current_launch

    if is_finished(config):
        print(f"{config.directory} is finished; give name=... for a new run, or sample from it.")
        return 0
    result = train(config)
    if not is_main_process():
        return 0
    if result.finished:
        print(f"Finished: {result.directory}. Next: {next_command(config)}")
    else:
        launcher = current_launch().launcher
        again = f"{launcher} command goes on." if launcher else f"command goes on: {given_command()}"
        print(f"Stopped and saved. The same {again}")
    return 0


TRAIN = Verb(
    "train",
    "Trains every stage of a run in order; run it again to resume.",
    add_config,
    _train,
    "vlad train configs/tiny.yaml name=mine train.layout.steps=3000 trainer.devices=2",
)


def _add_plan_options(parser: OptionParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--gpu-gb", type=float, metavar="GB", help="memory of the GPU, in 10^9 bytes; left out: that of the one here"
    )


def _plan(arguments: argparse.Namespace) -> None:
    if arguments.gpu_gb is not None and not 0 < arguments.gpu_gb < 1e6:
        raise UserError(f"--gpu-gb must be a number of gigabytes above 0, not {arguments.gpu_gb:g}.")
    from vlad.config.checks import check_config
    from vlad.config.load import load_config

    config = load_config(arguments.config, arguments.overrides)
    check_config(config)
    from vlad.training.build import build_parts
    from vlad.training.devices import sharding_ranks
    from vlad.training.memory_plan import CONTEXT_BYTES, GB, device_bytes, is_packed, plan_table, ways_to_fit
    from vlad.training.validate import check_sharding

    check_sharding(config)
    if config.align_stage == "only":
        raise UserError("align_stage: only trains no UNet; a plan is of the stages layout and refine.")
    parts, config = build_parts(config)
    if is_packed(parts):
        raise UserError("lora.base_bits: leave it out here; the plan says what packing the base would bring.")
    room = device_bytes() if arguments.gpu_gb is None else int(arguments.gpu_gb * GB)
    for name in ["refine"] if parts.layout_unet is None else ["layout", "refine"]:
        print(plan_table(ways_to_fit(config, parts, name, room, sharding_ranks(config)), room) + "\n")
    counted = "; --gpu-gb SIZE says what fits" if room is None else ", which 'fits' counts"
    print(
        f"GB of 10^9 bytes, of each process. A GPU takes about {CONTEXT_BYTES / GB:.1f} more for itself (assumed)"
        f"{counted}."
    )


PLAN = Verb(
    "plan",
    "Estimates the memory of each stage before a run starts, and lists what would make it fit.",
    _add_plan_options,
    _plan,
    "vlad plan configs/sd15.yaml data.batch_size=4 --gpu-gb 12",
)


def _doctor(arguments: argparse.Namespace) -> int:
    from vlad.config.load import load_config

    config = load_config(arguments.config, arguments.overrides)
    from vlad.profiling.doctor.checks import NAME_WIDTH, run_checks
    from vlad.profiling.doctor.findings import exit_code, table
    from vlad.utils.distributed import is_main_process

    findings = []
    for finding in run_checks(config):
        findings.append(finding)
        if is_main_process():  # at once: some of the checks take half a minute
            print(table([finding], name_width=NAME_WIDTH), flush=True)
    return exit_code(findings)


DOCTOR = Verb(
    "doctor",
    "Checks machine, config and data before a long run. Exit code 1 where something fails.",
    add_config,
    _doctor,
    "vlad doctor configs/tiny.yaml trainer.devices=2",
)


def _add_cache_options(parser: OptionParser) -> None:
    add_config(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="the directory for the cached shards")


def _cache(arguments: argparse.Namespace) -> None:
    from vlad.config.checks import check_config
    from vlad.config.load import load_config

    if not arguments.out.strip() or "://" in arguments.out:
        raise UserError(f"--out must name a directory of this machine for the cache, not {arguments.out!r}.")
    out = checked_path(arguments.out, "--out")
    config = load_config(arguments.config, arguments.overrides)
    # As the run that will read the cache: a cache that no run with these options takes is not worth making.
    check_config(replace(config, data=replace(config.data, cache=str(out))))
    config = replace(config, data=replace(config.data, cache=None))

    from tqdm import tqdm

    from vlad.data.latent_cache.precompute import write_cache
    from vlad.training.build import build_parts
    from vlad.training.caching import cache_encoder, cache_fingerprint
    from vlad.training.devices import run_device
    from vlad.training.run_data import refuse_without_text
    from vlad.training.validate import check_data
    from vlad.utils.locks import directory_lock

    if config.data.mix:
        raise UserError("data.mix: a cache is of one shard set; name it as data.shards.")
    sets = check_data(config).shards
    parts, built_config = build_parts(config)
    refuse_without_text(built_config, sets)
    writable_directory(out, "a cache", needed_bytes=sets.samples * 10_000)
    encode = cache_encoder(config, parts, run_device(config))
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
    print(f"{count} of {sets.samples} samples cached in {out}; train with {shlex.quote(f'data.cache={out}')}")


CACHE = Verb(
    "cache",
    "Caches the outputs of frozen models: the autoencoder's latents, a frozen LVLM's states.",
    _add_cache_options,
    _cache,
    "vlad cache configs/tiny.yaml --out data/tiny_cache",
    "Then train with data.cache=DIR. Interrupted, the same command resumes after the last finished shard.",
)


AVERAGE_MARK = "average.json"  # in a folder that `average` has written, and may write again


def _add_average_options(parser: OptionParser) -> None:
    parser.add_argument("run", help="the run directory")
    parser.add_argument("stage", choices=("layout", "refine"), help="the stage whose weights are averaged")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--width", type=float, help="sigma_rel, a share of the training: 0.05, 0.1, ...")
    which.add_argument("--average", metavar="NAME", help="one of STAGE/averages, such as half-life-500")
    parser.add_argument("--step", type=int, help="with --width: the step to average up to (default: the last one)")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of the new pipeline")


def _average(arguments: argparse.Namespace) -> None:
    import json

    from vlad.pipeline.folders import pipeline_folder
    from vlad.training.averaged_pipeline import averaged_pipeline, stored_average
    from vlad.training.posthoc_ema import reconstruct
    from vlad.utils.atomic_files import replaced_directory
    from vlad.utils.hub import hide_progress_bars

    stage = Path(arguments.run) / arguments.stage
    folder = pipeline_folder(Path(arguments.run))
    out = checked_path(arguments.out, "--out")
    if out.is_dir() and any(out.iterdir()) and not (out / AVERAGE_MARK).is_file():
        raise UserError(f"--out: {out} holds files that vlad average has not written; name another folder.")
    if arguments.average is not None:
        average = stored_average(stage, arguments.average)
    else:
        average = reconstruct(stage, arguments.width, arguments.step)
    pipeline = averaged_pipeline(folder, arguments.stage, average)
    writable_directory(out.parent, "the pipeline", needed_bytes=50_000_000)
    with replaced_directory(out) as partial, hide_progress_bars():
        pipeline.save_pretrained(partial)
        (partial / AVERAGE_MARK).write_text(json.dumps({"run": arguments.run, "stage": arguments.stage}) + "\n")
    print(f"Published in {out}. Next: {shlex.join(['vlad', 'sample', str(out), '--prompt', '...'])}")


AVERAGE = Verb(
    "average",
    "Publishes a run's pipeline with another average (EMA) of a stage's weights.",
    _add_average_options,
    _average,
    "vlad average runs/mine refine --width 0.1 --out runs/mine-0.1",
)


def _write_reference(arguments: argparse.Namespace) -> None:
    import json

    from vlad.config.reference import config_schema, options_page

    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "options.md").write_text(options_page(), encoding="utf-8")
    schema = json.dumps(config_schema(), indent=1, ensure_ascii=False)
    (arguments.out / "config.schema.json").write_text(schema + "\n", encoding="utf-8")
    print(f"{arguments.out / 'options.md'}, {arguments.out / 'config.schema.json'}")


def _add_reference_options(parser: OptionParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="DIR", help="default: docs")


OPTIONS = Verb(
    "options",
    "Writes the reference of all config options: a page, and a JSON schema for editors.",
    _add_reference_options,
    _write_reference,
    "vlad options --out docs",
)
