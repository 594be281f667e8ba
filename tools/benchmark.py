"""Measures parts of the program: tools/benchmark.py render|data|text|refit|sample|solvers|ocr|train|plan"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import operator
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.errors import UserError, run_command_line

if TYPE_CHECKING:
    from vlad.records import Sample


ROUNDS = 3  # of each measurement of the loader


def render(count: int) -> None:
    """Signs a second on one core: drawing alone, and drawing, encoding and writing shards."""
    from vlad.data.synthetic import SyntheticOptions, render_sign
    from vlad.data.writing import write_shards

    options = SyntheticOptions()
    for index in range(500):  # fills the caches of letters, as any set does in its first second
        render_sign(options, index)
    report("draw", count, lambda: [render_sign(options, index) for index in range(count)])
    with tempfile.TemporaryDirectory() as folder:
        signs = (render_sign(options, index) for index in range(count))
        report("draw and write shards", count, lambda: write_shards(signs, Path(folder)))


def data(count: int) -> None:
    """Samples a second from shards of 512 x 512 JPEG, and each as a share of the decode limit.

    The limit is Pillow's decoding of the same bytes, alone, in as many processes.
    """
    import dataclasses
    import statistics

    import torch

    from vlad.data.cache import data_fingerprint, open_cache, write_cache
    from vlad.data.shards import read_members
    from vlad.data.stream import ShardBatches, StreamOptions, open_sets
    from vlad.data.synthetic import SyntheticOptions, render_sign
    from vlad.data.writing import write_shards
    from vlad.records import Batch, CachedStates

    def latents(batch: Batch) -> CachedStates:
        """As large as Stable Diffusion's, and as good as any for being read."""
        picture, picture_deviation, glyph, glyph_deviation = torch.randn(4, len(batch.keys), 4, 64, 64)
        return CachedStates(picture, picture_deviation, glyph, glyph_deviation)

    with tempfile.TemporaryDirectory() as folder:
        shards, cache = Path(folder) / "shards", Path(folder) / "cache"
        shards.mkdir()
        cache.mkdir()
        options512 = SyntheticOptions(size_pixels=512)
        signs = (like_a_photograph(render_sign(options512, index), index) for index in range(count))
        write_shards(signs, shards, samples_per_shard=500, extension="jpg")
        sets = open_sets({str(shards): 1.0})
        options = StreamOptions(picture_pixels=512, batch_size=16, shuffle_window=500)
        fingerprint = data_fingerprint(sets, options)
        write_cache(sets, options, latents, cache, fingerprint, lambda done: None)
        cached = open_cache(str(cache), fingerprint)
        paths = [shard.path for shard in sets.indexes[0].shards]
        pictures = [members["jpg"] for path in paths for _, members in read_members(path)]
        print(f"{count} pictures of 512 x 512, {sum(map(len, pictures)) / count / 1000:.0f} kB each")
        tar = rate(count, lambda: [list(read_members(path)) for path in paths])
        for workers in (0, 1, 2):
            run = dataclasses.replace(options, workers=workers)
            batches = count // options.batch_size
            kinds = {
                "decode limit": DecodeAlone(pictures, options.batch_size),
                "whole pipeline to batches": ShardBatches(sets, run, batches),
                # Several times as many: a cached epoch of this size is over before the workers have begun.
                "cached latents to batches": ShardBatches(cached, run, 10 * batches),
            }
            # In turn: what else the machine does meets all of them.
            rounds = [
                [loading_rate(kind, workers, options.batch_size) for kind in kinds.values()] for _ in range(ROUNDS)
            ]
            print(f"{workers} workers" if workers else "in the process itself")
            print(f"  {'raw tar read, one process':28} {tar:8.0f} samples/s")
            for number, what in enumerate(kinds):
                found = statistics.median(row[number][0] for row in rounds)
                share = statistics.median(row[number][0] / row[0][0] for row in rounds)
                memory = rounds[-1][number][1]
                beside = f"  {memory:6.0f} MB a worker" if memory and number else ""
                print(f"  {what:28} {found:8.0f} samples/s  {share:6.2f} of the limit{beside}")
            print(f"  {'cached over whole':28} {statistics.median(row[2][0] / row[1][0] for row in rounds):8.1f}")


def like_a_photograph(sample: Sample, seed: int) -> Sample:
    """The sign under noise of all scales, weaker the finer: a flat sign decodes faster than any photograph."""
    import dataclasses

    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    height, width = sample.picture.shape[:2]
    noise = np.zeros((height, width), dtype=np.float32)
    for cells in (4, 8, 16, 32, 64, 128, 256):
        octave = Image.fromarray(rng.normal(0, 90 / cells**0.6, (cells, cells)).astype(np.float32))
        noise += np.asarray(octave.resize((width, height), Image.Resampling.BICUBIC))
    picture = (sample.picture + noise[..., None]).clip(0, 255).astype(np.uint8)
    return dataclasses.replace(sample, picture=picture)


class DecodeAlone:
    """Pillow's decoding of pictures, and nothing else: gives their number, batch by batch."""

    def __init__(self, pictures: list[bytes], batch_size: int) -> None:
        self.pictures, self.batch_size = pictures, batch_size

    def __len__(self) -> int:
        return len(self.pictures) // self.batch_size

    def __getitem__(self, number: int) -> int:
        import io

        import numpy as np
        from PIL import Image

        chosen = self.pictures[number * self.batch_size : (number + 1) * self.batch_size]
        return len([np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")) for picture in chosen])


def loading_rate(dataset: Any, workers: int, batch_size: int) -> tuple[float, float | None]:
    """Samples a second of a loader after its first batches, and the memory that a worker has for itself, in MB."""
    from torch.utils.data import DataLoader

    context = "fork" if workers else None
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=context)
    iterator = iter(loader)
    for _ in range(2 * max(1, workers) + 1):  # what the workers have prepared meanwhile
        next(iterator)
    started, count, memory = time.perf_counter(), 0, None
    for count, _ in enumerate(iterator, start=1):
        if workers and count == 10:
            memory = max(private_megabytes(worker.pid) for worker in iterator._workers)  # type: ignore[attr-defined]
    return count * batch_size / (time.perf_counter() - started), memory


def private_megabytes(process: int) -> float:
    """Memory that a process shares with no other."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1000


def rate(count: int, work: Callable[[], object]) -> float:
    """How many a second the work does, run once."""
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


@dataclass(frozen=True)
class TextFigures:
    """What training the text side in one way takes. Memory in bytes; that of `training` is exact on any machine."""

    mode: str
    prompts_per_second: float
    weights: int
    trained_parameters: int
    # Gradients and the optimiser's state, summed over their tensors.
    training: int
    # The most the process held, and the most on a GPU (0 without one).
    peak_process: int
    peak_device: int


def text(count: int, lvlm_path: str | None) -> None:
    """Prompts a second and memory of one LVLM: frozen, with LoRA, and trained in full; a process each."""
    modes = ("frozen", "lora", "full")
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        figures = [pool.apply(measure_text, (mode, count, lvlm_path)) for mode in modes]
    device = "GPU" if figures[0].peak_device else "process"
    print(f"{'':8}{'prompts/s':>10}{'weights':>12}{'trained':>12}{'grads + optimiser':>19}{f'peak of {device}':>18}")
    for row in figures:
        print(
            f"{row.mode:8}{row.prompts_per_second:10.1f}{row.weights / 1e6:9.1f} MB{row.trained_parameters:12,}"
            f"{row.training / 1e6:16.2f} MB{(row.peak_device or row.peak_process) / 1e6:15.0f} MB"
        )
    print(f"LoRA's gradients and optimiser take {figures[1].training / figures[2].training:.3f} of full training's.")


def measure_text(mode: str, count: int, lvlm_path: str | None, batch_size: int = 16) -> TextFigures:
    """Reads `count` prompts in batches, trained or not, and says what that took."""
    import warnings

    import torch

    from vlad.data.synthetic import SyntheticOptions, render_sign
    from vlad.text.loading import load_lvlm
    from vlad.text.lora import LoraOptions, add_adapter
    from vlad.text.lvlm import LVLMEncoder, LVLMOptions
    from vlad.text.prompt import parse_prompt

    warnings.filterwarnings("ignore", module=r"(transformers|peft).*")
    torch.manual_seed(0)
    # All three from float32 weights, whatever the folder stores: the same model.
    options = LVLMOptions(path=lvlm_path, hidden_size=512, layers=6, heads=8)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = LVLMEncoder(*load_lvlm(options, with_vision=False), options).to(device)
    if mode == "lora":
        lora = LoraOptions()
        encoder.model = add_adapter(encoder.model, lora, lora.lvlm_targets, "benchmark", among=encoder.text_modules())
    else:
        read = encoder.parameters_read(with_pictures=False)
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(mode == "full" and name in read)
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5) if trained else None
    captions = [render_sign(SyntheticOptions(), index).caption for index in range(min(count, 200))]
    prompts = [parse_prompt(caption, strict=False) for caption in islice(cycle(captions), count)]
    encoder.train()

    def step(batch: list) -> None:
        with torch.set_grad_enabled(optimizer is not None):
            states = encoder(batch)
        if optimizer is not None:
            optimizer.zero_grad()
            states.global_state.square().mean().backward()
            optimizer.step()

    step(prompts[:batch_size])  # makes the optimiser's state
    started = time.perf_counter()
    for start in range(0, count, batch_size):
        step(prompts[start : start + batch_size])
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    kept = [parameter.grad for parameter in trained if parameter.grad is not None]
    if optimizer is not None:
        kept += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return TextFigures(
        mode,
        count / seconds,
        sum(parameter.nbytes for parameter in encoder.parameters()),
        sum(parameter.numel() for parameter in trained),
        sum(tensor.nbytes for tensor in kept),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
    )


def refit(count: int) -> None:
    """Lines that refit finds in generated multi-line layouts, drawn and disturbed as a sampler does it."""
    from vlad.evaluation.refit_score import DISTURBANCES, KINDS, score_refit

    each = -(-count // len(KINDS))
    print(f"{each * len(KINDS)} layouts of 2 to 4 lines a disturbance, maps of 128 x 128: found, matched, mean IoU")
    for disturbance in DISTURBANCES:
        print(disturbance)
        scores = [score_refit(each, (kind,), disturbance) for kind in KINDS]
        for kind, score in zip(KINDS, scores, strict=True):
            print(f"  {kind:26}{score.found:8.1%}{score.matched:8.1%}{score.iou:7.3f}")
        lines = sum(score.lines for score in scores)
        found, matched, iou = (
            sum(getattr(score, name) * score.lines for score in scores) / lines for name in ("found", "matched", "iou")
        )
        print(f"  {'all':26}{found:8.1%}{matched:8.1%}{iou:7.3f}")


@dataclass(frozen=True)
class SampleFigures:
    """What sampling takes; times are medians of the rounds."""

    seconds: dict[str, float]  # a picture, by part of the way
    ratio: float  # stage two's time over that of StableDiffusionPipeline, median of the rounds' ratios
    peak: int  # bytes of the process, or of the GPU, that our pipeline takes


SAMPLE_PROMPT = 'a blue sign that says "HOUSE" in white letters at the top'
SAMPLE_ROUNDS = 5


def sample(run: str | None, steps: int, batch: int, faster: tuple[str, ...] = ()) -> None:
    """Seconds a picture by stage, and diffusers' StableDiffusionPipeline with a UNet of the same size beside them."""
    figures = measure_sample(run, steps, batch, faster=faster)
    print(f"{batch} pictures at once, {steps} steps a stage, guidance with two evaluations a step, float32")
    for part, seconds in figures.seconds.items():
        print(f"  {part:58}{1000 * seconds:9.2f} ms a picture")
    print(f"  stage two takes {figures.ratio:.3f} of its time; at the peak our own took {figures.peak / 1e6:.0f} MB")


STAGE_TWO = "stage two without its decoder"
STABLE_DIFFUSION = "diffusers' StableDiffusionPipeline without its decoder"


def pipeline_to_measure(run: str | None, device: Any) -> Any:
    """A run's pipeline, or one of the embedded default's sizes with random weights."""
    import warnings

    warnings.filterwarnings("ignore", module=r"(transformers|diffusers).*")
    import torch

    from vlad.building import build_pipeline, new_parts
    from vlad.config import load_config
    from vlad.sampling import load_pipeline

    if run is not None:
        return load_pipeline(run)
    config = load_config(Path(__file__).parents[1] / "configs" / "tiny.yaml")
    pipeline = build_pipeline(config, new_parts(config))
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def measure_sample(
    run: str | None, steps: int, batch: int, rounds: int = SAMPLE_ROUNDS, faster: tuple[str, ...] = ()
) -> SampleFigures:
    """Measures the parts of sampling and StableDiffusionPipeline in alternating rounds.

    `faster`: "channels last", "compiled": stage two once more with its UNet so.
    """
    import copy
    import statistics

    import torch

    from vlad.layout.polygons import box_polygon
    from vlad.records import Layout, TextLine

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = pipeline_to_measure(run, device)
    prompts, seeds = [SAMPLE_PROMPT] * batch, list(range(batch))
    parsed = [pipeline.check_prompt(prompt) for prompt in prompts]
    settings = pipeline.settings(steps=steps, batch_size=batch, text_scale=2.0, layout_scale=2.0)
    tokens = pipeline._read_prompts(parsed[:1], settings).wanted.tokens.expand(batch, -1, -1)
    layouts = [Layout((TextLine("HOUSE", box_polygon(0.1, 0.1, 0.9, 0.3)),))] * batch
    own = pipeline.refine_unet

    def stage_two(output_type: str, unet: Any = own) -> None:
        pipeline.register_modules(refine_unet=unet)
        pipeline(prompts, seeds, layouts, steps, 2.0, 2.0, batch_size=batch, output_type=output_type)

    parts: dict[str, Callable[[], object]] = {
        "reading the prompts": lambda: pipeline._read_prompts(parsed, settings),
        STAGE_TWO: lambda: stage_two("latent"),
        "stage two": lambda: stage_two("pil"),
    }
    if pipeline.layout_unet is not None:
        parts["stage one, with its decoder and refit"] = lambda: pipeline.plan(parsed, seeds, settings)

    def seconds_of(work: Callable[[], object]) -> float:
        started = time.perf_counter()
        with torch.no_grad():
            work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    for work in parts.values():  # warms up, before anything stands beside our own
        seconds_of(work)
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else process
    beside = {STABLE_DIFFUSION: stable_diffusion(own, tokens, seeds, steps)}
    for way in faster:
        unet = copy.deepcopy(own)
        if way == "compiled":
            unet.compile()
        else:
            unet.to(memory_format=torch.channels_last)
        beside[f"{STAGE_TWO}, {way}"] = functools.partial(stage_two, "latent", unet)
    for work in beside.values():
        seconds_of(work)
    parts |= beside
    measured: dict[str, list[float]] = {part: [] for part in parts}
    for _ in range(rounds):
        for part, work in parts.items():
            measured[part].append(seconds_of(work) / batch)
    ratio = statistics.median(map(operator.truediv, measured[STAGE_TWO], measured[STABLE_DIFFUSION]))
    return SampleFigures({part: statistics.median(values) for part, values in measured.items()}, ratio, peak)


def stable_diffusion(unet: Any, tokens: Any, seeds: list[int], steps: int) -> Callable[[], object]:
    """Diffusers' own pipeline at work on tokens (B K D), with a new UNet of the same blocks and width.

    What is concatenated to x_t, and the pooled conditioning, are ours alone.
    """
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    options = {**unet.config, "in_channels": unet.config.out_channels, "class_embed_type": None}
    options["projection_class_embeddings_input_dim"] = None
    plain = UNet2DConditionModel.from_config(options).eval().to(unet.device)
    solver = DDIMScheduler(steps_offset=1, clip_sample=False)
    pipeline = StableDiffusionPipeline(None, None, None, plain, solver, None, None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    side = unet.config.sample_size * pipeline.vae_scale_factor

    def work() -> object:
        return pipeline(
            prompt_embeds=tokens,
            negative_prompt_embeds=torch.zeros_like(tokens),
            height=side,
            width=side,
            num_inference_steps=steps,
            guidance_scale=2.0,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="latent",
        )

    return work


SOLVER_STEPS = (2, 4, 6, 10)


def solvers(run: str, count: int, engine: str) -> None:
    """Held-out words read in pictures of few steps, by solver that fits the run; both stages take as many steps."""
    import numpy as np

    from vlad.config import load_config
    from vlad.diffusion.samplers import SOLVERS
    from vlad.errors import existing_file
    from vlad.evaluation.held_out import held_out_signs
    from vlad.evaluation.ocr import build_engine, read_many
    from vlad.evaluation.spelling import word_accuracy
    from vlad.sampling import load_pipeline

    name = build_engine(engine).name
    config = load_config(existing_file(Path(run) / "config.yaml", "config", "name a run directory that train.py made"))
    pipeline = load_pipeline(run)
    signs = held_out_signs(config.data.synthetic, count)
    prompts, wanted = [sign.caption for sign in signs], [[line.text for line in sign.layout.lines] for sign in signs]
    print(f"{count} held-out words, {name}; share read exactly, and ms a picture")
    print(f"{'':10}" + " ".join(f"{f'{steps} steps':>14}" for steps in SOLVER_STEPS))
    for solver in SOLVERS:
        try:
            pipeline.use_solver(solver)
        except UserError:  # for another objective
            continue
        cells = []
        for steps in SOLVER_STEPS:
            started = time.perf_counter()
            pictures = [np.asarray(image) for image in pipeline(prompts, list(range(count)), steps=steps).images]
            seconds = time.perf_counter() - started
            right = word_accuracy(list(read_many(engine, pictures)), wanted)
            cells.append(f"{right:7.1%} {1000 * seconds / count:4.0f}ms")
        print(f"{solver:10}" + " ".join(f"{cell:>14}" for cell in cells), flush=True)


def ocr(count: int, engine: str) -> None:
    """Pictures of 512 x 512 read a second, by one process and by one a core, and the memory they take.

    The pictures are rendered signs under noise; a process's start is part of its time, as it is in an evaluation.
    """
    from vlad.data.parallel import available_cores
    from vlad.data.synthetic import SyntheticOptions, render_sign
    from vlad.evaluation.reading_files import ReadOptions

    options = SyntheticOptions(size_pixels=512)
    cores = available_cores()
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        pictures.mkdir()
        for index in range(count):
            save_picture(like_a_photograph(render_sign(options, index), index), pictures / f"{index}.jpg")
        print(f"{count} pictures of 512 x 512, {engine}, {cores} cores")
        rates = []
        for workers in dict.fromkeys((1, cores)):
            store = Path(folder) / f"readings-{workers}"
            store.mkdir()
            read = functools.partial(read_all, pictures, store, ReadOptions(engine, workers=workers))
            rates.append(rate(count, read))
            print(f"  processes: {workers}  {rates[-1]:6.1f} pictures/s  {rates[-1] / rates[0]:.2f} of one's rate")


def save_picture(sample: Sample, path: Path) -> None:
    """Writes the sample's picture."""
    from PIL import Image

    Image.fromarray(sample.picture).save(path, quality=92)


def read_all(pictures: Path, store: Path, options: Any) -> None:
    """Reads the folder's pictures; prints the memory of this process at the first quarter and at the end."""
    from vlad.evaluation.reading_files import PictureFile, read_files

    paths = sorted(pictures.iterdir())
    files = (PictureFile(path, store / f"{path.stem}.json") for path in paths)
    for number, _ in enumerate(read_files(files, options), start=1):
        if number in (len(paths) // 4, len(paths)):
            workers = sum(private_megabytes(child.pid or 0) for child in multiprocessing.active_children())
            used = private_megabytes(multiprocessing.current_process().pid or 0) + workers
            print(f"    {used:6.0f} MB held by all processes after {number} pictures")


def train(call: list[str], stage: str, switches: list[str], steps: int, warmup: int, cache: str | None) -> None:
    """What each switch brings to the steps of a stage, one after the other."""
    from vlad.performance.comparison import HEAD, Call, Row, compare, text_row

    if not call or "=" in call[0]:
        raise UserError("train wants a config: python tools/benchmark.py train configs/tiny.yaml [key=value ...].")
    shown: list[Row] = []

    def show(row: Row) -> None:
        shown.append(row)
        first = next((other for other in shown if other.figures is not None), None)
        print(text_row(row, first), flush=True)

    print(f"{call[0]}, stage {stage}, {steps} steps after {warmup}; each row keeps the switches above it\n{HEAD}")
    compare(Call(call[0], tuple(call[1:]), stage), switches, steps, warmup, cache, show)


PLANNED = {
    # What a plan is held against: a stand-in of 41 M parameters at 256 pixels, whose peak is far above what a
    # process takes for itself.
    "full, batch 1": ["data.batch_size=1", "lora=null"],
    "full, batch 4": ["data.batch_size=4", "lora=null"],
    "adapters, batch 4": ["data.batch_size=4"],
}
SD15 = Path(__file__).parents[1] / "configs" / "sd15.yaml"
PLANNED_CHANNELS = (128, 256, 384)


def plan() -> None:
    """The planned and the measured peak of both stages, on the CPU, each measured in a process of its own."""
    from vlad.diffusion.stand_in import StandInOptions, save_stand_in

    options = StandInOptions(PLANNED_CHANNELS, layers_per_block=2)
    with tempfile.TemporaryDirectory() as folder:
        save_stand_in("sd15", Path(folder) / "sd15", options)
        print(f"{'':32} planned GB  measured GB  planned / measured")
        for what, overrides in PLANNED.items():
            for stage in ("layout", "refine"):
                planned, measured = planned_and_measured(Path(folder) / "sd15", stage, 256, overrides)
                print(
                    f"{f'{stage}, {what}':32} {planned / 1e9:10.2f}  {measured / 1e9:11.2f}  {planned / measured:18.2f}"
                )


def planned_and_measured(model: Path, stage: str, pixels: int, overrides: list[str]) -> tuple[int, int]:
    """Bytes: what the plan says of a stage from a stand-in, and what its steps take at most."""
    overrides = [
        *(
            f"stable_diffusion.path={model}",
            f"data.picture_pixels={pixels}",
            "lvlm.path=null",
            "trainer.accelerator=cpu",
        ),
        *(
            "trainer.precision=32-true",
            f"train.{stage}.accumulate_batches=1",
            "data.shuffle_window=8",
            "data.workers=0",
        ),
        *overrides,
    ]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # each in a process of its own
        planned, measured = (pool.apply(work, (stage, pixels, overrides)) for work in (_plan_stage, _measure_stage))
    return planned, measured


def _plan_stage(name: str, pixels: int, overrides: list[str]) -> int:
    from vlad.building import build_parts
    from vlad.config import load_config
    from vlad.memory_plan import plan_stage

    parts, config = build_parts(load_config(SD15, overrides))
    return plan_stage(config, parts, name).total


def _measure_stage(name: str, pixels: int, overrides: list[str]) -> int:
    """The peak of a stage's models and three of its steps, above what the process held before."""
    import gc

    import torch

    from vlad.building import build_parts, reads_pictures
    from vlad.config import load_config
    from vlad.data.stream import collate
    from vlad.data.synthetic import SyntheticOptions, render_sign
    from vlad.diffusion.noise import build_scheduler
    from vlad.training.optim import build_optimizer
    from vlad.training.phases import TextPhases
    from vlad.training.stages import LayoutStage, RefineStage, set_modes

    torch.manual_seed(0)
    config = load_config(SD15, overrides)
    import vlad.diffusion.stable_diffusion  # noqa: F401  # what a library takes for itself is no model's

    gc.collect()
    before = status_bytes("VmRSS")
    parts, config = build_parts(config)
    if name == "refine":  # as on a GPU, where the other stage's UNet waits in main memory
        parts.layout_unet = None
    for module in (parts.autoencoder, parts.text_side, parts.alignment):
        module.requires_grad_(False)
    optim = getattr(config.train, name)
    if name == "layout":
        TextPhases(parts.text_side, config.text_training, reads_pictures(config), "").prepare()
        noise = config.layout.noise
        stage: Any = LayoutStage(parts, build_scheduler(noise), noise, config.losses, optim)
        parts.refine_unet = None  # type: ignore[assignment]
    else:
        noise = config.refine.noise
        stage = RefineStage(parts, build_scheduler(noise), noise, config.losses, optim, with_layout=True)
    stage.log_losses = stage.log_temperature = lambda *_, **__: None  # there is no trainer to log to
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten
    stage.settle()
    set_modes(stage)
    optimizer = build_optimizer(stage, optim, stage.trained_names(), fused=True)
    named = dict(stage.named_parameters())
    average = {key: named[key].detach().clone() for key in stage.trained_names()}
    signs = [render_sign(SyntheticOptions(size_pixels=pixels), number) for number in range(config.data.batch_size)]
    batch = collate(signs)
    for step in range(3):
        stage.training_step(batch, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(list(average.values()), [named[key].detach() for key in average], 0.1)
    return status_bytes("VmHWM") - before


def status_bytes(field: str) -> int:
    """A figure of this process's memory, as the kernel counts it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def report(what: str, count: int, work: Callable[[], object]) -> None:
    """Runs the work once and prints its rate."""
    print(f"{what:24} {rate(count, work):8.0f} samples/s")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures parts of the program; compare figures of one run only.")
    parser.add_argument(
        "part", choices=("render", "data", "text", "refit", "sample", "solvers", "ocr", "train", "plan")
    )
    parser.add_argument("config", nargs="*", metavar="CONFIG key=value ...", help="train: what train.py would be given")
    parser.add_argument(
        "--count", type=int, help="samples, prompts or layouts: 4000; text 320, refit 500, ocr 1000, solvers 200"
    )
    parser.add_argument("--lvlm", help="text: a folder or hub id; without it a Qwen2.5-VL of 6 layers of 512")
    parser.add_argument("--engine", default="rapidocr", help="ocr, solvers: which engine (default: rapidocr)")
    parser.add_argument(
        "--run", help="sample: a run or pipeline; without it random weights of configs/tiny.yaml's sizes"
    )
    parser.add_argument("--steps", type=int, help="sample: solver steps of each stage (10); train: steps a row (20)")
    parser.add_argument("--warmup", type=int, default=5, help="train: steps before them that do not count (default: 5)")
    parser.add_argument("--stage", default="refine", help="train: align, autoencoder, layout or refine (default)")
    parser.add_argument(
        "--switches",
        nargs="+",
        default=["plain", "attention", "channels_last", "compile", "cache", "batch"],
        help="train: rows of the table (default: plain attention channels_last compile cache batch)",
    )
    parser.add_argument("--cache", help="train: a cache of this config (tools/cache.py)")
    parser.add_argument("--batch-size", type=int, default=16, help="sample: pictures at once (default: 16)")
    parser.add_argument("--channels-last", action="store_true", help="sample: stage two once more in that format")
    parser.add_argument("--compile", action="store_true", help="sample: stage two once more, compiled")
    arguments = parser.parse_intermixed_args()
    if arguments.part == "train":
        steps = 20 if arguments.steps is None else arguments.steps
        if min(steps, arguments.warmup) < 1:
            raise UserError("--steps and --warmup must be at least 1.")
        train(arguments.config, arguments.stage, arguments.switches, steps, arguments.warmup, arguments.cache)
        return
    if arguments.config:
        raise UserError(f"{arguments.part} takes no config, and {arguments.config[0]} was given; leave it out.")
    if arguments.part == "sample":
        arguments.steps = 10 if arguments.steps is None else arguments.steps
        if min(arguments.steps, arguments.batch_size) < 1:
            raise UserError("--steps and --batch-size must be at least 1.")
        asked = {"channels last": arguments.channels_last, "compiled": arguments.compile}
        sample(arguments.run, arguments.steps, arguments.batch_size, tuple(way for way, on in asked.items() if on))
        return
    if arguments.part == "plan":
        plan()
        return
    default = {"text": 320, "refit": 500, "ocr": 1000, "solvers": 200}.get(arguments.part, 4000)
    count = default if arguments.count is None else arguments.count
    if count < 100:
        raise UserError("--count must be at least 100.")
    if arguments.part == "text":
        text(count, arguments.lvlm)
    elif arguments.part == "solvers":
        if arguments.run is None:
            raise UserError("solvers needs a trained run: --run runs/tiny.")
        solvers(arguments.run, count, arguments.engine)
    elif arguments.part == "ocr":
        ocr(count, arguments.engine)
    else:
        {"render": render, "data": data, "refit": refit}[arguments.part](count)


if __name__ == "__main__":
    run_command_line(main)
