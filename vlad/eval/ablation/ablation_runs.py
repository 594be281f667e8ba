"""The runs of an ablation: trained and scored by the project's own commands, several at once with more jobs.

pending --next_run--> vlad train --> vlad evaluate --> done; with every variant of a seed done: the table anew
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from vlad.config.load import load_config
from vlad.data.render_shards import held_out_samples
from vlad.eval.ablation.ablation_table import ablation_grid, ablation_page, read_scores
from vlad.eval.ablation.variants import FULL, autoencoder_is_done, run_overrides, share_autoencoder, variants
from vlad.metrics.ocr import build_ocr_engine
from vlad.training.publish import is_finished
from vlad.utils.errors import UserError
from vlad.utils.parallel import available_cores
from vlad.utils.paths import writable_directory
from vlad.utils.subprocesses import ChildCommands, job_environment, visible_devices

POLL_SECONDS = 1.0  # the end of a stage in another process shows in its file alone


@dataclass(frozen=True)
class Planned:
    """One run of the table: the variant's name, and the seed."""

    variant: str
    seed: int


@dataclass(frozen=True)
class Call:
    """A command that failed, where its output is, and its exit code."""

    command: str
    where: str
    code: int


def next_run(pending: Sequence[Planned], under_way: Collection[Planned], full_runs: Sequence[Path]) -> Planned | None:
    """The first pending run that can start; None where all wait for their seed's autoencoder.

    Args:
        full_runs: the full method's run directory of each seed, whose autoencoder stage the others copy.
    """
    for planned in pending:
        full = Planned(FULL, planned.seed)
        waits = planned != full and (full in pending or full in under_way)
        if not waits or autoencoder_is_done(full_runs[planned.seed]):
            return planned
    return None


class AblationRuns:
    """All runs of one ablation, and the files about them: `out`/ablation.md, ablation.png, and logs/ with several jobs.

    Args:
        config_file: of the whole method.
        overrides: key=value options of all runs.
        seeds: runs of each variant.
        count: held-out words that each run generates.
        modes: generation modes, as options spell them; None takes all.
        jobs: runs at once, each with its share of the CPU's cores and of the CUDA devices.
        out: folder of the table and the images; None takes RUNS/NAME-ablation.

    Raises:
        UserError: for a config that is not the whole method's, or more jobs than the machine has cores and devices.
    """

    def __init__(
        self,
        config_file: Path,
        overrides: Sequence[str],
        seeds: int,
        count: int,
        modes: Sequence[str] | None,
        jobs: int,
        out: Path | None,
    ) -> None:
        config = load_config(config_file, overrides)
        self.config, self.config_file, self.given = config, config_file, overrides
        self.seeds, self.count, self.jobs = seeds, count, jobs
        # Threads change the last bits of a training, so the page's command names the jobs.
        parallel = ["--jobs", str(jobs)] if jobs > 1 else []
        self.score_options = ["--count", str(count), *(["--modes", *modes] if modes else [])]
        self.page_options = [*self.score_options[:2], *parallel, *self.score_options[2:]]
        self.variants = variants(config)
        self.cores, self.devices = available_cores(), visible_devices()
        most = max(self.cores, len(self.devices))
        if jobs > most:
            raise UserError(f"--jobs {jobs} is more than the {self.cores} cores of this machine; name at most {most}.")
        self.engine = build_ocr_engine("rapidocr").name
        self.out = writable_directory(out or Path(config.runs) / f"{config.name}-ablation", "the table")
        # Seed by seed: an interrupted ablation has a table of the seeds that are whole.
        self.pending = [Planned(variant.name, seed) for seed in range(seeds) for variant in self.variants]
        self.overrides = {
            Planned(variant.name, seed): run_overrides(config, variant, seed, overrides)
            for seed in range(seeds)
            for variant in self.variants
        }
        self.configs = {planned: load_config(config_file, more) for planned, more in self.overrides.items()}
        self.full_runs = [self.configs[Planned(FULL, seed)].directory for seed in range(seeds)]
        self.total = len(self.pending)
        self.under_way: set[Planned] = set()
        self.done: set[Planned] = set()
        self.tables = 0  # seeds in the table that was written last
        self.failed: list[Call] = []
        self._changed = threading.Condition()

    def run(self, children: ChildCommands) -> bool:
        """Trains and scores what is not done; whether all is done now. What failed is in `failed`."""
        if self.jobs > 1:
            writable_directory(self.out / "logs", "what the runs print")
        with ThreadPoolExecutor(self.jobs) as pool:
            workers = [pool.submit(self._work, children, job) for job in range(self.jobs)]
            for worker in as_completed(workers):
                if worker.exception() is not None:
                    children.stop()
            for worker in workers:
                worker.result()
        return len(self.done) == self.total

    def write(self, seeds: int) -> str:
        """Writes the table of the first seeds and the images; returns the page."""
        rows = [
            (row, [read_scores(self.configs[Planned(row.name, seed)].directory) for seed in range(seeds)])
            for row in self.variants
        ]
        given = " ".join(["vlad ablate", str(self.config_file), *self.given])
        command = " ".join([given, "--seeds", str(seeds), *self.page_options])
        page = ablation_page(self.config, rows, command, self.count, self.engine, "ablation.png")
        (self.out / "ablation.md").write_text(page, encoding="utf-8")
        first_runs = [(row, self.configs[Planned(row.name, 0)].directory) for row in self.variants]
        captions = [sample.caption for sample in held_out_samples(self.config.data, self.count)]
        ablation_grid(first_runs, captions).save(self.out / "ablation.png")
        return page

    def _work(self, children: ChildCommands, job: int) -> None:
        """One worker: takes runs until none is left, one fails, or all are interrupted."""
        while not children.interrupted:
            with self._changed:
                planned = next_run(self.pending, self.under_way, self.full_runs)
                if planned is None:
                    if not self.pending:
                        return
                    self._changed.wait(POLL_SECONDS)
                    continue
                self.pending.remove(planned)
                self.under_way.add(planned)
            succeeded = self._train_and_score(children, planned, job)
            with self._changed:
                self.under_way.remove(planned)
                self._changed.notify_all()
                if not succeeded:
                    return
                self.done.add(planned)
                print(f"\n{len(self.done)} of {self.total} runs: {planned.variant}, seed {planned.seed}", flush=True)
                while self.tables < self.seeds and all(
                    Planned(row.name, self.tables) in self.done for row in self.variants
                ):
                    self.tables += 1
                    print(f"\n{self.write(self.tables)}\nTable and images: {self.out}", flush=True)

    def _train_and_score(self, children: ChildCommands, planned: Planned, job: int) -> bool:
        """Trains and scores a run; returns whether both succeeded."""
        trained = self.configs[planned]
        if not is_finished(trained):
            share_autoencoder(self.full_runs[planned.seed], trained.directory)
            train = ("train", str(self.config_file), *self.overrides[planned])
            # An interrupted training saves and exits with 0, unfinished.
            if not (self._call(children, planned, job, *train) and is_finished(trained)):
                return False
        return self._call(children, planned, job, "evaluate", str(trained.directory), *self.score_options)

    def _call(self, children: ChildCommands, planned: Planned, job: int, *command: str) -> bool:
        """Runs one of the project's own commands; returns whether it succeeded. A failure stops the others."""
        shown = f"vlad {' '.join(command)}"
        print(f"\n== {shown}", flush=True)
        log = self.out / "logs" / f"{planned.variant}-{planned.seed}.log" if self.jobs > 1 else None
        share = job_environment(job, self.jobs, self.cores, self.devices) if self.jobs > 1 else None
        code = children.run(*command, environment=share, log=log)
        if code != 0 and not children.interrupted:
            self.failed.append(Call(shown, f"see {log}" if log else "see above", code))
            children.stop()
        return code == 0
