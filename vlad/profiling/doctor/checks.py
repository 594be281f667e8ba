"""The doctor's checks, in the order of its table: all of `validate`, and what has ended or slowed long runs.

A check returns its finding; a UserError inside it is a failure with that message. A check is skipped where one that it
depends on has failed: that finding gives the reason.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import torch
from packaging.version import Version
from torch import nn
from torch.utils.data import DataLoader

from vlad.config.checks import check_config
from vlad.config.schema import Config
from vlad.config.training import OptimOptions
from vlad.data.batch_buffers import worker_context
from vlad.data.dataset import ShardBatches
from vlad.models.attention import set_attention, try_xformers
from vlad.profiling.doctor.all_reduce import all_reduce_rate
from vlad.profiling.doctor.findings import Finding
from vlad.profiling.training_throughput import StageFigures, measure_stage
from vlad.training.build import seeded_parts
from vlad.training.build_stage import build_stage, stage_names
from vlad.training.checkpoint import list_checkpoints
from vlad.training.devices import local_processes, run_device, sharding_ranks
from vlad.training.memory_plan import CONTEXT_BYTES, MemoryOptions, StagePlan, checkpoint_bytes, is_packed, plan_stage
from vlad.training.memory_savers import prove_compile
from vlad.training.optim import check_optimizer
from vlad.training.parts import Parts
from vlad.training.precision import computed_in, stage_precision
from vlad.training.provenance import cpu_name
from vlad.training.publish import is_finished
from vlad.training.run_data import RunData
from vlad.training.validate import check_data, check_machine, check_stages
from vlad.utils.errors import DISTRIBUTION, UserError, counted
from vlad.utils.hardware import available_memory, synchronize
from vlad.utils.launcher import current_launch

# The oldest releases that work; and releases that must not run.
OLDEST = {"torch": "2.11", "lightning": "2.6.6", "diffusers": "0.42", "transformers": "5.20", "peft": "0.21"}
BAD = {
    ("lightning", "2.6.2"): "a malicious release",
    ("lightning", "2.6.3"): "a malicious release",
    ("pytorch-lightning", "2.6.2"): "a malicious release",
    ("pytorch-lightning", "2.6.3"): "a malicious release",
}
TIMED_STEPS, WARMUP_STEPS, TIMED_BATCHES = 3, 2, 20
LOADER_MARGIN = 1.2  # how many times faster than the steps the loader should be
NAME_WIDTH = 10  # of the longest check's name
MEMORY_SHARE = 0.9  # of the device's memory; the rest is for the allocator and libraries


@dataclass(frozen=True)
class TrainedParameter:
    """The number of a parameter's values, and their dtype."""

    count: int
    dtype: torch.dtype


class RunFacts:
    """A config and what several checks need of it, each computed once."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.device = run_device(config)
        self.processes = local_processes(config)
        self.ranks = self.processes * config.trainer.nodes

    @cached_property
    def data(self) -> RunData:
        return check_data(self.config)

    @cached_property
    def built(self) -> tuple[Parts, Config]:
        return seeded_parts(self.config)

    @cached_property
    def stages(self) -> list[str]:
        return stage_names(self.built[1], self.built[0])

    @cached_property
    def trained(self) -> dict[str, dict[str, TrainedParameter]]:
        """The trained parameters of each stage, by name."""
        parts, config = self.built
        found = {}
        for name in self.stages:
            named = build_stage(config, parts, name, self.data.shards).module.named_parameters()
            found[name] = {key: TrainedParameter(p.numel(), p.dtype) for key, p in named if p.requires_grad}
        return found

    @cached_property
    def memory(self) -> dict[str, StagePlan]:
        """The memory plans of the stages that train a UNet."""
        parts, config = self.built
        ranks, plans = sharding_ranks(config), {}
        for name in self.stages:
            if name in ("layout", "refine"):
                switches = MemoryOptions.of(config, name, ranks, stage_precision(config, name)[0])
                plans[name] = plan_stage(config, parts, name, switches)
        return plans

    @cached_property
    def speed(self) -> StageFigures:
        """Training throughput of the last stage, on one process."""
        config = replace(self.config, trainer=replace(self.config.trainer, devices="1", nodes=1, strategy="ddp"))
        return measure_stage(config, self.stages[-1], TIMED_STEPS, WARMUP_STEPS)


def run_checks(config: Config) -> Iterator[Finding]:
    """The findings, each as soon as it is known."""
    facts = RunFacts(config)
    checks: tuple[tuple[str, Callable[[RunFacts], Finding]], ...] = (
        ("config", options),
        ("versions", versions),
        ("device", device),
        ("launch", launch),
        ("run", run_directory),
        ("precision", precision),
        ("xformers", xformers),
        ("switches", switches),
        ("shards", shards),
        ("models", models),
        ("attention", attention),
        ("dtypes", trained_dtypes),
        ("memory", memory),
        ("disk", disk),
        ("loader", loader),
        ("all-reduce", all_reduce),
    )
    failed: set[str] = set()
    needs = {
        "models": {"config", "shards"},
        "attention": {"models"},
        "dtypes": {"shards", "models"},
        "memory": {"shards", "models", "precision", "dtypes"},
        "disk": {"shards", "models", "precision", "dtypes"},
        "loader": {"memory", "switches", "attention"},
        "all-reduce": {"launch"},
    }
    for name, check in checks:
        if missing := sorted(needs.get(name, set()) & failed):
            failed.add(name)
            yield Finding(name, "warn", f"skipped, because of {' and '.join(missing)}")
            continue
        try:
            finding = check(facts)
        except UserError as error:
            finding = Finding(name, "fail", str(error))
        if finding.level == "fail":
            failed.add(name)
        yield finding


def options(facts: RunFacts) -> Finding:
    """No options contradict each other."""
    check_config(facts.config)
    return Finding("config", "ok", "no contradictions")


def versions(_: RunFacts) -> Finding:
    """No library is malicious or too old."""
    found = {}
    for name in {*OLDEST, *(name for name, _ in BAD)}:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for name, version in found.items():
        if (name, version) in BAD:
            remedy = f"Remove it, check this machine for intrusion, and pip install -U '{name}>={OLDEST['lightning']}'."
            return Finding("versions", "fail", f"{name} {version} is {BAD[name, version]}", remedy)
    old = [
        f"{name} {found.get(name, 'missing')} (at least {least})"
        for name, least in OLDEST.items()
        if is_older(found.get(name), least)
    ]
    if old:
        return Finding(
            "versions", "fail", f"too old: {', '.join(old)}", f"pip install -U -c constraints.txt {DISTRIBUTION}."
        )
    return Finding("versions", "ok", ", ".join(f"{name} {found[name]}" for name in OLDEST))


def is_older(version: str | None, least: str) -> bool:
    """Whether a version is older than another; None (not installed) is older."""
    return version is None or Version(version) < Version(least)


def device(facts: RunFacts) -> Finding:
    """torch's kernels run on the device, forward and backward."""
    if facts.config.trainer.accelerator == "gpu" and facts.device.type == "cpu":
        remedy = "Install a torch for this machine's driver (see nvidia-smi), or set trainer.accelerator=cpu."
        return Finding("device", "fail", f"no GPU that torch can use (built for CUDA {torch.version.cuda})", remedy)
    where = facts.device
    name = cpu_name()
    if where.type == "cuda":
        name = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
        if facts.processes > torch.cuda.device_count():
            remedy = f"Set trainer.devices={torch.cuda.device_count()}."
            found = f"{name}, but trainer.devices asks for {facts.processes} processes"
            return Finding("device", "fail", found, remedy)
    try:
        weight = torch.randn(8, 8, 3, 3, device=where, requires_grad=True)
        torch.nn.functional.conv2d(torch.randn(1, 8, 16, 16, device=where), weight).sum().backward()
        synchronize(where)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        return Finding("device", "fail", f"{name}: {reason}", "Install a torch that is built for this GPU and driver.")
    if where.type == "cpu" and torch.version.cuda is not None:
        remedy = "Check nvidia-smi: without a driver that fits, the run uses the CPU."
        return Finding(
            "device", "warn", f"{name}; torch is built for CUDA {torch.version.cuda} and finds no GPU", remedy
        )
    return Finding("device", "ok", name)


def launch(facts: RunFacts) -> Finding:
    """Devices, processes, strategy and optional packages are there."""
    check_machine(facts.config)
    return Finding("launch", "ok", f"{facts.config.trainer.nodes} x {facts.processes} processes")


def run_directory(facts: RunFacts) -> Finding:
    """The run directory is new, or holds a run that this config can continue."""
    config = facts.config
    where = config.directory
    if is_finished(config):  # raises for another config
        remedy = "train.py would do nothing; give name=... for a new run."
        return Finding("run", "warn", f"{where} holds a finished run of this config", remedy)
    kept = [path for stage in where.glob("*/checkpoints") for path in list_checkpoints(stage)]
    newest = max(kept, key=lambda path: path.stat().st_mtime, default=None)
    if newest is not None:
        return Finding("run", "ok", f"continues from {newest}, if that is intact")
    if (where / "config.yaml").is_file():
        return Finding("run", "ok", f"continues in {where} at the beginning of a stage")
    return Finding("run", "ok", f"a new run in {where}")


def precision(facts: RunFacts) -> Finding:
    """The device computes in the precision of each stage."""
    notes, used = [], {}
    for name in ("align", "autoencoder", "layout", "refine"):
        used[name], note = stage_precision(facts.config, name)
        notes += [f"{name}: {note}"] if note else []
    if notes:
        remedy = "Train on a device that computes in bf16, or set the precision to 32-true."
        return Finding("precision", "warn", "; ".join(notes), remedy)
    return Finding("precision", "ok", ", ".join(f"{name} {kind}" for name, kind in used.items()))


def xformers(facts: RunFacts) -> Finding:
    """An installed xformers has kernels for this torch and device."""
    try:
        version = importlib.metadata.version("xformers")
    except importlib.metadata.PackageNotFoundError:
        return Finding("xformers", "ok", "not installed, not needed: torch's own attention is used")
    reason = try_xformers(facts.device, computed_in(stage_precision(facts.config, "refine")[0]))
    if reason is None:
        return Finding("xformers", "ok", f"{version}, its kernel ran here")
    remedy = f"Install the release that is built for torch {torch.__version__}, or remove it: SDPA is used instead."
    return Finding("xformers", "warn", f"{version}: {reason}", remedy)


def switches(facts: RunFacts) -> Finding:
    """torch.compile and the optimisers work here, where they are used."""
    for name in ("align", "autoencoder", "layout", "refine"):
        check_optimizer(getattr(facts.config.train, name), facts.device)
    trainer = facts.config.trainer
    if trainer.compile != "none" and (reason := prove_compile(facts.device)) is not None:
        return Finding("switches", "fail", f"torch cannot compile here: {reason}", "Set trainer.compile=none.")
    found = f"compile {trainer.compile}, activation_checkpointing {trainer.activation_checkpointing}"
    return Finding("switches", "ok", f"{found}, channels_last {str(trainer.channels_last).lower()}")


def shards(facts: RunFacts) -> Finding:
    """There are samples for every rank's batch, and shards for every worker."""
    sets, data = facts.data.shards, facts.config.data
    readers = facts.ranks * max(1, data.workers)
    found = (
        f"{counted(sets.samples, 'sample')} in {counted(sets.shards, 'shard')} for {counted(facts.ranks, 'rank')} x"
        f" {counted(data.workers, 'worker')}"
    )
    if sets.shards < readers:
        remedy = f"Workers share files: fine on a local disk; for an object store, make at least {readers} shards."
        return Finding("shards", "warn", found, remedy)
    return Finding("shards", "ok", found)


def models(facts: RunFacts) -> Finding:
    """The models can be built, and their stages trained here."""
    parts, config = facts.built
    check_stages(config, facts.stages, facts.data)
    modules = {
        "LVLM and CCM": parts.text_side,
        "autoencoder": parts.autoencoder,
        "layout UNet": parts.layout_unet,
        "refine UNet": parts.refine_unet,
    }
    sizes = [
        f"{name} {sum(p.numel() for p in module.parameters()) / 1e6:.1f} M"
        for name, module in modules.items()
        if module is not None
    ]
    return Finding("models", "ok", f"{', '.join(sizes)} parameters; stages {', '.join(facts.stages)}")


def attention(facts: RunFacts) -> Finding:
    """Which attention is used."""
    parts, config = facts.built
    unets = [unet for unet in (parts.layout_unet, parts.refine_unet) if unet is not None]
    dtype = computed_in(stage_precision(config, facts.stages[-1])[0])
    line = set_attention(unets, config.trainer.attention, facts.device, dtype)
    return Finding("attention", "ok", line.removeprefix("attention: "))


def trained_dtypes(facts: RunFacts) -> Finding:
    """No trained parameter is stored in half precision."""
    for stage, trained in facts.trained.items():
        halves = [name for name, kind in trained.items() if kind.dtype in (torch.bfloat16, torch.float16)]
        if halves:
            remedy = "Half precision rounds small updates away: load these weights in float32."
            found = f"stage {stage} trains {len(halves)} parameters stored in half precision, the first is {halves[0]}"
            return Finding("dtypes", "fail", found, remedy)
    return Finding("dtypes", "ok", "all trained parameters are float32")


def memory(facts: RunFacts) -> Finding:
    """The planned memory of the largest stage fits the device."""
    parts, config = facts.built
    if is_packed(parts):
        remedy = "Plan without lora.base_bits: vlad plan lists what quantising the base saves."
        return Finding("memory", "warn", "not planned: the base is quantised", remedy)
    if not facts.memory:
        return Finding("memory", "ok", f"no UNet is trained in {', '.join(facts.stages)}: nothing is planned")
    name, plan = max(facts.memory.items(), key=lambda entry: entry[1].total)
    on_gpu = facts.device.type == "cuda"
    available = available_memory(facts.device)
    # Processes on a CPU share its memory; each on a GPU has its own, and takes some for the CUDA context.
    needed = plan.total + CONTEXT_BYTES if on_gpu else plan.total * facts.processes
    breakdown = (
        f"weights {_gb(plan.weights)}, gradients, optimiser and EMA"
        f" {_gb(plan.gradients + plan.optimiser + plan.averages)}, activations of {config.data.batch_size} images"
        f" {_gb(plan.activations)}"
    )
    found = f"about {_gb(needed)} of {_gb(available)} in stage {name}: {breakdown}"
    if needed > MEMORY_SHARE * available:
        remedy = "vlad plan with the same config lists what would make it fit, data.batch_size=1 first."
        return Finding("memory", "fail" if needed > available else "warn", found, remedy)
    return Finding("memory", "ok", found)


def disk(facts: RunFacts) -> Finding:
    """The disk has room for the largest stage's checkpoints and for what all stages publish."""
    trainer, (parts, config) = facts.config.trainer, facts.built
    most, published, snapshots = 0, 0, 0
    for name in facts.stages:
        optim: OptimOptions = getattr(config.train, name)
        count = sum(kind.count for kind in facts.trained[name].values())
        each = checkpoint_bytes(count, optim)
        kept = trainer.keep_checkpoints + 1  # the next is written before the oldest is deleted
        kept += optim.steps // trainer.keep_every_steps if trainer.keep_every_steps else 0
        most = max(most, each * kept)
        published += each // 4
        if optim.ema_snapshot_every_steps:
            times = optim.steps // optim.ema_snapshot_every_steps
            snapshots += 4 * count * len(optim.ema_power_widths) * times  # float32
    modules = [part for part in vars(parts).values() if isinstance(part, nn.Module)]
    published += sum(parameter.nbytes for module in modules for parameter in module.parameters())
    folder = config.directory
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{_gb(free)} free at {config.directory}, checkpoints {_gb(most)}, results {_gb(published)}"
    found += f", EMA snapshots {_gb(snapshots)}" if snapshots else ""
    if free < most + published + snapshots:
        remedy = "Free some space, name another runs=..., or lower trainer.keep_checkpoints."
        remedy += " Or raise ema_snapshot_every_steps." if snapshots else ""
        return Finding("disk", "fail", found, remedy)
    return Finding("disk", "ok", found)


def loader(facts: RunFacts) -> Finding:
    """The loader is faster than the training steps."""
    config, speed = facts.config, facts.speed
    batches = ShardBatches(facts.data.shards, config.data.stream(config.seed), WARMUP_STEPS + TIMED_BATCHES)
    stream = DataLoader(
        batches,
        batch_size=None,
        num_workers=config.data.workers,
        multiprocessing_context=worker_context(config.data.workers),
    )
    iterator = iter(stream)
    for _ in islice(iterator, WARMUP_STEPS):
        pass
    started = time.perf_counter()
    count = sum(1 for _ in iterator)
    rate = count * config.data.batch_size / (time.perf_counter() - started)
    found = f"{rate:.0f} images/s from the loader, {speed.images_per_second:.1f} in the steps of {facts.stages[-1]}"
    if rate < LOADER_MARGIN * speed.images_per_second:
        remedy = "The loader would slow training down: raise data.workers, or cache latents (vlad cache)."
        return Finding("loader", "warn", found, remedy)
    return Finding("loader", "ok", found)


def all_reduce(facts: RunFacts) -> Finding:
    """An all-reduce works between the ranks of this machine, or of the launch."""
    if facts.ranks == 1:
        return Finding("all-reduce", "ok", "one process, not needed")
    launched = current_launch().launcher == "torchrun"
    if facts.ranks != facts.processes and not launched:
        return Finding("all-reduce", "warn", "not tried between nodes", "Start the doctor with torchrun, as the run.")
    rate = all_reduce_rate(facts.ranks if launched else facts.processes, facts.device.type)
    return Finding("all-reduce", "ok", f"{facts.ranks} ranks, {rate / 1e9:.2f} GB/s")


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
