"""The checks, in the order of the table: each looks at one thing that has ended long runs.

A check returns its finding; a UserError that it meets is its failure, with that sentence. What needs the parts of the
run is left out where they cannot be built: the finding that says why stands above.
"""

from __future__ import annotations

import importlib.metadata
import os
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

# What the code is written against; and releases that must not run.
LEAST = {"torch": "2.11", "lightning": "2.6.6", "diffusers": "0.42", "transformers": "5.20", "peft": "0.21"}
BAD = {
    ("lightning", "2.6.2"): "a malicious release",
    ("lightning", "2.6.3"): "a malicious release",
    ("pytorch-lightning", "2.6.2"): "a malicious release",
    ("pytorch-lightning", "2.6.3"): "a malicious release",
}
TIMED_STEPS, WARMUP_STEPS, TIMED_BATCHES = 3, 2, 20
LOADER_MARGIN = 1.2  # the loader shall be so much faster than the steps
NAME_WIDTH = 10  # of the longest name of a check
MEMORY_SHARE = 0.9  # of the device's; the rest is the allocator's and the libraries'


@dataclass(frozen=True)
class Trained:
    """How many values a trained parameter has, and how they are stored."""

    count: int
    dtype: torch.dtype


class Examined:
    """A config, and what the checks find out about it once."""

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
    def trained(self) -> dict[str, dict[str, Trained]]:
        """What each stage trains, by the names of the parameters."""
        parts, config = self.built
        found = {}
        for name in self.stages:
            named = build_stage(config, parts, name, self.data.shards).module.named_parameters()
            found[name] = {key: Trained(p.numel(), p.dtype) for key, p in named if p.requires_grad}
        return found

    @cached_property
    def memory(self) -> dict[str, StagePlan]:
        """The plans of the stages that train a UNet."""
        parts, config = self.built
        ranks, plans = sharding_ranks(config), {}
        for name in self.stages:
            if name in ("layout", "refine"):
                switches = MemoryOptions.of(config, name, ranks, stage_precision(config, name)[0])
                plans[name] = plan_stage(config, parts, name, switches)
        return plans

    @cached_property
    def speed(self) -> StageFigures:
        """Of the last stage, on one process."""
        config = replace(self.config, trainer=replace(self.config.trainer, devices="1", nodes=1, strategy="ddp"))
        return measure_stage(config, self.stages[-1], TIMED_STEPS, WARMUP_STEPS)


def examine(config: Config) -> Iterator[Finding]:
    """Every finding, as soon as it is known."""
    examined = Examined(config)
    checks: tuple[tuple[str, Callable[[Examined], Finding]], ...] = (
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
        ("trained in", trained_in),
        ("memory", memory),
        ("disk", disk),
        ("loader", loader),
        ("all-reduce", all_reduce),
    )
    failed: set[str] = set()
    needs = {
        "models": {"config", "shards"},
        "attention": {"models"},
        "trained in": {"shards", "models"},
        "memory": {"shards", "models", "precision", "trained in"},
        "disk": {"shards", "models", "precision", "trained in"},
        "loader": {"memory", "switches", "attention"},
        "all-reduce": {"launch"},
    }
    for name, check in checks:
        if missing := sorted(needs.get(name, set()) & failed):
            failed.add(name)
            yield Finding(name, "warn", f"not looked at, because of {' and '.join(missing)}")
            continue
        try:
            finding = check(examined)
        except UserError as error:
            finding = Finding(name, "fail", str(error))
        if finding.level == "fail":
            failed.add(name)
        yield finding


def options(examined: Examined) -> Finding:
    """That no options contradict each other."""
    check_config(examined.config)
    return Finding("config", "ok", "no contradictions")


def versions(_: Examined) -> Finding:
    """Releases that are known to be bad, and older ones than the code needs."""
    found = {}
    for name in {*LEAST, *(name for name, _ in BAD)}:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for name, version in found.items():
        if (name, version) in BAD:
            remedy = f"Remove it, look over this machine, and pip install -U '{name}>={LEAST['lightning']}'."
            return Finding("versions", "fail", f"{name} {version} is {BAD[name, version]}", remedy)
    old = [
        f"{name} {found.get(name, 'missing')} (at least {least})"
        for name, least in LEAST.items()
        if is_older(found.get(name), least)
    ]
    if old:
        return Finding(
            "versions", "fail", f"too old: {', '.join(old)}", f"pip install -U -c constraints.txt {DISTRIBUTION}."
        )
    return Finding("versions", "ok", ", ".join(f"{name} {found[name]}" for name in LEAST))


def is_older(version: str | None, least: str) -> bool:
    """Whether a release is older than another one; one that is not installed is."""
    return version is None or Version(version) < Version(least)


def device(examined: Examined) -> Finding:
    """That torch's kernels run on the device, forward and backward, in the precision of the run."""
    if examined.config.trainer.accelerator == "gpu" and examined.device.type == "cpu":
        remedy = "Install a torch for this machine's driver (nvidia-smi tells it), or set trainer.accelerator=cpu."
        return Finding("device", "fail", f"no GPU that torch can use (built for CUDA {torch.version.cuda})", remedy)
    where = examined.device
    name = cpu_name()
    if where.type == "cuda":
        name = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
        if examined.processes > torch.cuda.device_count():
            remedy = f"Set trainer.devices={torch.cuda.device_count()}."
            return Finding("device", "fail", f"{name}, but {examined.processes} processes are asked for", remedy)
    try:
        weight = torch.randn(8, 8, 3, 3, device=where, requires_grad=True)
        torch.nn.functional.conv2d(torch.randn(1, 8, 16, 16, device=where), weight).sum().backward()
        synchronize(where)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        return Finding("device", "fail", f"{name}: {reason}", "Install a torch that is built for this GPU and driver.")
    if where.type == "cpu" and torch.version.cuda is not None:
        remedy = "Look at nvidia-smi: without a driver that fits, the run takes the CPU."
        return Finding(
            "device", "warn", f"{name}; torch is built for CUDA {torch.version.cuda}, and sees no GPU", remedy
        )
    return Finding("device", "ok", name)


def launch(examined: Examined) -> Finding:
    """That a launcher has started what the config asks for, and that the strategy can."""
    check_machine(examined.config)
    return Finding("launch", "ok", f"{examined.config.trainer.nodes} x {examined.processes} processes")


def run_directory(examined: Examined) -> Finding:
    """Whether the run directory is new, or holds a run that goes on with this config."""
    config = examined.config
    where = config.directory
    if is_finished(config):  # refuses another config
        remedy = "train.py has nothing to do there; give name=... for a new run."
        return Finding("run", "warn", f"{where} holds a finished run of this config", remedy)
    kept = [path for stage in where.glob("*/checkpoints") for path in list_checkpoints(stage)]
    newest = max(kept, key=lambda path: path.stat().st_mtime, default=None)
    if newest is not None:
        return Finding("run", "ok", f"goes on from {newest}, if it reads back whole")
    begun = " at the beginning of a stage" if (where / "config.yaml").is_file() else ""
    return Finding("run", "ok", f"goes on in {where}{begun}" if begun else f"a new one in {where}")


def precision(examined: Examined) -> Finding:
    """What each stage computes in here."""
    notes, used = [], {}
    for name in ("align", "autoencoder", "layout", "refine"):
        used[name], note = stage_precision(examined.config, name)
        notes += [f"{name}: {note}"] if note else []
    if notes:
        return Finding(
            "precision", "warn", "; ".join(notes), "Train on a device that computes in bf16, or ask for 32-true."
        )
    return Finding("precision", "ok", ", ".join(f"{name} {kind}" for name, kind in used.items()))


def xformers(examined: Examined) -> Finding:
    """Whether an installed xformers has kernels for this torch and device."""
    try:
        version = importlib.metadata.version("xformers")
    except importlib.metadata.PackageNotFoundError:
        return Finding("xformers", "ok", "not installed, not needed: torch's own attention runs")
    reason = try_xformers(examined.device, computed_in(stage_precision(examined.config, "refine")[0]))
    if reason is None:
        return Finding("xformers", "ok", f"{version}, its kernel ran here")
    remedy = f"Install the release that is built for torch {torch.__version__}, or remove it; SDPA takes its place."
    return Finding("xformers", "warn", f"{version}: {reason}", remedy)


def switches(examined: Examined) -> Finding:
    """That torch compiles here and that the optimisers run here, where they are asked for."""
    for name in ("align", "autoencoder", "layout", "refine"):
        check_optimizer(getattr(examined.config.train, name), examined.device)
    trainer = examined.config.trainer
    if trainer.compile != "none" and (reason := prove_compile(examined.device)) is not None:
        return Finding("switches", "fail", f"torch cannot compile here: {reason}", "Set trainer.compile=none.")
    kept = f"compile {trainer.compile}, activation_checkpointing {trainer.activation_checkpointing}"
    return Finding("switches", "ok", f"{kept}, channels_last {str(trainer.channels_last).lower()}")


def shards(examined: Examined) -> Finding:
    """That every rank gets a whole batch, and every worker a shard of its own to read."""
    sets, data = examined.data.shards, examined.config.data
    readers = examined.ranks * max(1, data.workers)
    found = (
        f"{counted(sets.samples, 'sample')} in {counted(sets.shards, 'shard')} for {counted(examined.ranks, 'rank')} x"
        f" {counted(data.workers, 'worker')}"
    )
    if sets.shards < readers:
        remedy = f"All read the same files: fine on a local disk; from a store, make at least {readers} shards."
        return Finding("shards", "warn", found, remedy)
    return Finding("shards", "ok", found)


def models(examined: Examined) -> Finding:
    """That the models can be built, and their stages trained here."""
    parts, config = examined.built
    check_stages(config, examined.stages, examined.data)
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
    return Finding("models", "ok", f"{', '.join(sizes)} parameters; stages {', '.join(examined.stages)}")


def attention(examined: Examined) -> Finding:
    """Which attention runs."""
    parts, config = examined.built
    unets = [unet for unet in (parts.layout_unet, parts.refine_unet) if unet is not None]
    dtype = computed_in(stage_precision(config, examined.stages[-1])[0])
    line = set_attention(unets, config.trainer.attention, examined.device, dtype)
    return Finding("attention", "ok", line.removeprefix("attention: "))


def trained_in(examined: Examined) -> Finding:
    """Whether anything that is trained is stored in half precision."""
    for stage, trained in examined.trained.items():
        halves = [name for name, kind in trained.items() if kind.dtype in (torch.bfloat16, torch.float16)]
        if halves:
            remedy = "Small steps are lost in it: load these weights in float32."
            found = f"stage {stage} trains {len(halves)} parameters stored in half precision, the first is {halves[0]}"
            return Finding("trained in", "fail", found, remedy)
    return Finding("trained in", "ok", "float32, all that is trained")


def memory(examined: Examined) -> Finding:
    """The plan of the stage that takes most, against what the device has."""
    parts, config = examined.built
    if is_packed(parts):
        remedy = "Plan without lora.base_bits: python tools/plan.py says what packing the base brings."
        return Finding("memory", "warn", "not planned: the base is packed in few bits", remedy)
    if not examined.memory:
        return Finding("memory", "ok", f"no UNet is trained in {', '.join(examined.stages)}: nothing is planned")
    name, plan = max(examined.memory.items(), key=lambda entry: entry[1].total)
    on_gpu = examined.device.type == "cuda"
    room = available_memory(examined.device)
    # Processes on a CPU share its memory; each on a GPU has one for itself, and needs some for that.
    needed = plan.total + CONTEXT_BYTES if on_gpu else plan.total * examined.processes
    held = (
        f"weights {_gb(plan.weights)}, gradients, moments and averages"
        f" {_gb(plan.gradients + plan.optimiser + plan.averages)}, activations of {config.data.batch_size} images"
        f" {_gb(plan.activations)}"
    )
    found = f"about {_gb(needed)} of {_gb(room)} in stage {name}: {held}"
    if needed > MEMORY_SHARE * room:
        remedy = "python tools/plan.py with the same config says what would make it fit, data.batch_size=1 first."
        return Finding("memory", "fail" if needed > room else "warn", found, remedy)
    return Finding("memory", "ok", found)


def disk(examined: Examined) -> Finding:
    """Room for the checkpoints of the stage that keeps most, and for what all stages publish."""
    trainer, (parts, config) = examined.config.trainer, examined.built
    most, published, snapshots = 0, 0, 0
    for name in examined.stages:
        optim: OptimOptions = getattr(config.train, name)
        count = sum(kind.count for kind in examined.trained[name].values())
        each = checkpoint_bytes(count, optim)
        kept = trainer.keep_checkpoints + 1  # the next is written before the oldest goes
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
    found += f", snapshots of averages {_gb(snapshots)}" if snapshots else ""
    if free < most + published + snapshots:
        remedy = "Make room, name another runs=..., or lower trainer.keep_checkpoints."
        remedy += " Or raise ema_snapshot_every_steps." if snapshots else ""
        return Finding("disk", "fail", found, remedy)
    return Finding("disk", "ok", found)


def loader(examined: Examined) -> Finding:
    """What the loader gives alone, against what the steps take."""
    config, speed = examined.config, examined.speed
    batches = ShardBatches(examined.data.shards, config.data.stream(config.seed), WARMUP_STEPS + TIMED_BATCHES)
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
    found = f"{rate:.0f} images/s from the loader, {speed.images_per_second:.1f} in the steps of {examined.stages[-1]}"
    if rate < LOADER_MARGIN * speed.images_per_second:
        remedy = "The loader would hold training up: raise data.workers, or cache latents (tools/cache.py)."
        return Finding("loader", "warn", found, remedy)
    return Finding("loader", "ok", found)


def all_reduce(examined: Examined) -> Finding:
    """An all-reduce between the ranks of this machine, or of the launch."""
    if examined.ranks == 1:
        return Finding("all-reduce", "ok", "one process, nobody to talk to")
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    if examined.ranks != examined.processes and not launched:
        return Finding("all-reduce", "warn", "not tried between nodes", "Start this tool as the run: with torchrun.")
    rate = all_reduce_rate(examined.ranks if launched else examined.processes, examined.device.type)
    return Finding("all-reduce", "ok", f"{examined.ranks} ranks, {rate / 1e9:.2f} GB/s")


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
