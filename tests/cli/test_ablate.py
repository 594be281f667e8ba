"""The ablation on a world of its own: every variant trained for a few steps, twice called, one table."""

import json
import signal
import time
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from vlad.cli.evaluate import EVALUATE
from vlad.cli.studies import ABLATE
from vlad.cli.train import TRAIN
from vlad.config.load import load_config
from vlad.data.options import SyntheticOptions
from vlad.data.shards.writer import write_manifest, write_shards
from vlad.data.signs import render_sign
from vlad.eval.ablation.ablation_table import Scores, ablation_page, ablation_table, main_mode, order_line, spread
from vlad.eval.ablation.variants import run_overrides, share_autoencoder, variants
from vlad.utils.errors import UserError
from vlad.utils.subprocesses import ChildCommands

MINIATURE = """
name: mini
runs: {runs}
data: {{shards: {shards}, image_pixels: 32, batch_size: 4, workers: 1, shuffle_window: 8}}
lvlm: {{hidden_size: 32, layers: 1, heads: 2, vision_hidden_size: 32, vision_layers: 1, vision_pixels: 32}}
composition: {{width: 32, layers: 1, heads: 2, output_width: 32}}
autoencoder: {{latent_channels: 8, decoder_width: 16, decoder_layers: 1}}
layout: {{unet: {{block_channels: [32], heads: 2}}, noise: {{prediction: sample}}}}
refine: {{unet: {{block_channels: [32], heads: 2}}, noise: {{prediction: sample}}}}
train:
  autoencoder: {{steps: 2, warmup_steps: 1}}
  layout: {{steps: 2, warmup_steps: 1}}
  refine: {{steps: 2, warmup_steps: 1}}
trainer: {{checkpoint_every_steps: 2, sample_every_steps: 0, accelerator: cpu}}
sample: {{steps: 1, batch_size: 2}}
"""
# What vlad evaluate finds of one way of drawing, as far as the table asks for it.
MEASURED = {
    "word_accuracy": 0.5,
    "letter_accuracy": 0.75,
    "colours": {"grounds_right": 1.0, "inks_right": 0.5},
    "places": {"places_right": None},
}


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    shards = tmp_path / "shards"
    shards.mkdir()
    signs = (render_sign(SyntheticOptions(size_pixels=32), index) for index in range(16))
    write_manifest(shards, write_shards(signs, shards, 8), {})
    path = tmp_path / "mini.yaml"
    path.write_text(MINIATURE.format(runs=tmp_path / "runs", shards=shards), encoding="utf-8")
    return path


def test_every_variant_is_trained_and_scored_once(
    config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[tuple[str, ...]] = []

    def call(children: ChildCommands, *command: str, **settings: object) -> int:
        """The command in this process: five starts of Python take longer than the training."""
        calls.append(command)
        assert settings == {"environment": None, "log": None}
        # Signal handlers are the main thread's, and here a worker's thread trains.
        with monkeypatch.context() as patched:
            patched.setattr(signal, "signal", lambda number, handler: None)
            return {"train": TRAIN, "evaluate": EVALUATE}[command[0]](command[1:])

    monkeypatch.setattr(ChildCommands, "run", call)

    def run() -> int:
        return ABLATE([str(config_file), "train.layout.steps=3", "--seeds", "1", "--count", "2"])

    assert run() == 0
    assert [command[0] for command in calls] == ["train", "evaluate"] * 5
    # One autoencoder a seed: the variants begin behind it, and it is the full method's to the bit.
    runs = [tmp_path / "runs" / f"mini-ablation-{name}-0" for name in ("full", "no-ccm", "no-layout", "no-alignment")]
    weights = [(folder / "autoencoder" / "trained.safetensors").read_bytes() for folder in runs]
    assert weights[1:] == weights[:1] * 3
    assert (runs[0] / "autoencoder" / "logs").is_dir() and not (runs[1] / "autoencoder" / "logs").exists()
    in_pipelines = [load_file(folder / "pipeline/autoencoder/diffusion_pytorch_model.safetensors") for folder in runs]
    assert all((found[name] == value).all() for found in in_pipelines[1:] for name, value in in_pipelines[0].items())
    out = tmp_path / "runs" / "mini-ablation"
    table = (out / "ablation.md").read_text(encoding="utf-8")
    rows = [line for line in table.split("## ")[0].splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in rows[1:6]] == [
        "| full",
        "| without CCM",
        "| without hierarchical guidance",
        "| without alignment loss",
        "| without spelling tokens",
    ]
    assert "vlad ablate" in table and "train.layout.steps=3 --seeds 1 --count 2" in table
    assert "5 steps of 4 images in the layout and refine stages together (3 and 2;" in table
    assert "Order by words: " in table and "full > without hierarchical guidance > without CCM." in table
    assert "(ablation.png)" in table and "2 held-out words a run, read by rapidocr" in table
    assert table in capsys.readouterr().out
    assert Image.open(out / "ablation.png").width > 5 * 200
    trained = load_config(tmp_path / "runs" / "mini-ablation-no-layout-0" / "config.yaml")
    assert (trained.layout.kind, trained.train.refine.steps, trained.seed) == ("none", 5, 0)
    # Again: nothing is trained, and what was scored is taken as it is.
    calls.clear()
    assert run() == 0
    assert [command[0] for command in calls] == ["evaluate"] * 5
    assert (out / "ablation.md").read_text(encoding="utf-8") == table


def test_two_jobs_train_each_run_once_and_wait_for_the_autoencoder(
    config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    begun: list[str] = []
    together: set[tuple[str, ...]] = set()
    at_work: set[str] = set()
    fails: list[str] = []
    asked: list[tuple[str, ...]] = []

    def call(children: ChildCommands, *command: str, environment: dict[str, str], log: Path) -> int:
        """What the commands would leave behind, after a moment; the environment that each was given is in the log."""
        log.write_text(environment["OMP_NUM_THREADS"], encoding="utf-8")
        if command[0] == "evaluate":
            asked.append(command[2:])
            scores = dict.fromkeys(("refit", "raw", "true layout"), MEASURED)
            (Path(command[1]) / "evaluation" / "refit").mkdir(parents=True, exist_ok=True)
            (Path(command[1]) / "evaluation" / "metrics.json").write_text(json.dumps({"modes": scores}))
            for number in range(2):
                Image.new("RGB", (32, 32)).save(Path(command[1]) / "evaluation" / "refit" / f"{number:04d}.png")
            return 0
        run = load_config(config_file, command[2:]).directory
        begun.append(run.name)
        at_work.add(run.name)
        together.add(tuple(sorted(at_work)))
        time.sleep(0.05)
        at_work.discard(run.name)
        if run.name in fails:
            return 2
        for name in ("autoencoder/metrics.json", "autoencoder/trained.safetensors", "pipeline/model_index.json"):
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_text("{}", encoding="utf-8")
        return 0

    monkeypatch.setattr(ChildCommands, "run", call)
    finished = "vlad.eval.ablation.ablation_runs.is_finished"
    monkeypatch.setattr(finished, lambda config: (config.directory / "pipeline").is_dir())
    monkeypatch.setattr("vlad.eval.ablation.ablation_runs.POLL_SECONDS", 0.01)
    monkeypatch.setattr("vlad.eval.ablation.ablation_runs.available_cores", lambda: 4)

    def run(*more: str) -> int:
        return ABLATE([str(config_file), "--count", "2", "--jobs", "2", *more])

    fails.append("mini-ablation-no-ccm-0")
    assert run("--seeds", "2") == 2
    log = tmp_path / "runs" / "mini-ablation" / "logs" / "no-ccm-0.log"
    assert f"name=mini-ablation-no-ccm-0 seed=0 (see {log})." in capsys.readouterr().err
    fails.clear()
    assert run("--seeds", "2") == 0
    assert {name for name in begun if begun.count(name) > 1} <= {"mini-ablation-no-ccm-0"}
    assert len(set(begun)) == 10
    assert max(map(len, together)) == 2
    # The two full runs first: no variant begins while its autoencoder is being trained.
    assert set(begun[:2]) == {"mini-ablation-full-0", "mini-ablation-full-1"}
    assert log.read_text(encoding="utf-8") == "2"
    assert "2 seeds, mean" in (tmp_path / "runs" / "mini-ablation" / "ablation.md").read_text(encoding="utf-8")
    assert run("--seeds", "2", "--ways", "refit", "raw") == 0  # --modes of version 0.1
    assert asked[-1] == ("--count", "2", "--modes", "refit", "raw") and asked[0] == ("--count", "2")
    table = (tmp_path / "runs" / "mini-ablation" / "ablation.md").read_text(encoding="utf-8")
    assert "--seeds 2 --count 2 --jobs 2 --modes refit raw\n" in table
    with pytest.raises(UserError, match="--modes needs refit"):
        run("--modes", "raw")
    with pytest.raises(UserError, match="--jobs 5 is more than the 4 cores of this machine"):
        run("--jobs", "5")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--count", "20000"], "--count must be a whole number from 1 to 10000"),
        (["--jobs", "1", "nonsense=1"], "nonsense"),  # behind an option, and understood
        (["--seeds", "1", "composition.spelling=false"], "makes two rows of the table the same"),
    ],
)
def test_wrong_calls_are_told_before_anything_is_trained(config_file: Path, given: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ABLATE([str(config_file), *given])


def test_each_variant_differs_from_the_full_method_by_its_part(config_file: Path) -> None:
    config = load_config(config_file)
    found = {
        variant.name: load_config(config_file, run_overrides(config, variant, 1, [])) for variant in variants(config)
    }
    full = found["full"]
    assert full.composition.kind != "none" and full.layout.kind != "none"
    assert full.losses.align_weight > 0 and full.composition.spelling
    assert found["no-ccm"].composition.kind == "none"
    assert found["no-layout"].layout.kind == "none"
    assert found["no-alignment"].losses.align_weight == 0
    assert found["no-spelling"].composition.spelling is False
    # Equal budgets: the steps after the autoencoder's are as many in every variant.
    steps = {
        name: c.train.refine.steps + (c.train.layout.steps if c.layout.kind != "none" else 0)
        for name, c in found.items()
    }
    assert set(steps.values()) == {4}
    assert {c.seed for c in found.values()} == {1}
    assert len({c.name for c in found.values()}) == 5
    with pytest.raises(UserError, match="starts from the whole method"):
        variants(load_config(config_file, ["layout.kind=none"]))
    for same in ("losses.align_weight=0", "composition.spelling=false"):
        with pytest.raises(UserError, match=f"{same} makes two rows of the table the same"):
            variants(load_config(config_file, [same]))


def test_the_table_has_means_and_deviations(config_file: Path) -> None:
    full, without, *_ = variants(load_config(config_file))
    runs = [
        {"refit": Scores(words, 0.9, 1.0, 0.85, 0.95), "raw": Scores(0.0, 0.1), "true layout": Scores(0.7, 0.9)}
        for words in (0.8, 0.9)
    ]
    bare = [{"no layout": Scores(words, 0.5, 0.6, None, place)} for words, place in ((0.1, 0.25), (0.3, None))]
    table = ablation_table([(full, runs), (without, bare)]).splitlines()
    # The deviation of 80 and 90 is 5 * sqrt(2); of the differences, -70 and -60, too.
    columns = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert columns[0][1:6] == ["words, %", "against full", "letters, %", "background, %", "text colour, %"]
    assert columns[0][6:9] == ["position, %", "words: true layout", "words: raw plan"]
    assert columns[2][:4] == ["full", "85.0 ± 7.1", "", "90.0 ± 0.0"]
    assert columns[2][4:9] == ["100.0 ± 0.0", "85.0 ± 0.0", "95.0 ± 0.0", "70.0 ± 0.0", "0.0 ± 0.0"]
    assert columns[3][:4] == ["without CCM", "20.0 ± 14.1", "-65.0 ± 7.1", "50.0 ± 0.0"]
    assert columns[3][4:] == ["60.0 ± 0.0", "-", "-", "-", "-", "39.12, 0.342, 0.812"]
    assert len({len(cells) for cells in columns}) == 1
    assert spread([0.925]) == "92.5" and spread([0.5, None]) == "-"
    assert order_line([(without, bare), (full, runs)]) == (
        "Order by words: full > without CCM. The paper's, by OCR F: full > without CCM."
    )
    assert order_line([(full, runs), (without, runs)]).startswith("Order by words: full = without CCM. ")
    page = ablation_page(
        load_config(config_file), [(full, runs), (without, bare)], "the command", 9, "an engine", "x.png"
    )
    assert (
        "| words, % | seed 0 | seed 1 |" in page and "2 seeds, mean" in page and "| without CCM | 10.0 | 30.0 |" in page
    )
    assert [main_mode(runs[0]), main_mode(bare[0])] == ["refit", "no layout"]


def test_an_autoencoder_is_shared_whole_or_not_at_all(tmp_path: Path) -> None:
    source, target = tmp_path / "full", tmp_path / "other"
    assert not share_autoencoder(source, target)  # none was trained
    (source / "autoencoder").mkdir(parents=True)
    (source / "autoencoder" / "trained.safetensors").write_bytes(b"weights")
    assert not share_autoencoder(source, target)  # it is not done
    (source / "autoencoder" / "metrics.json").write_text("{}")
    (target / "autoencoder.partial").mkdir(parents=True)  # a copy that was cut off
    (target / "autoencoder.partial" / "junk").touch()
    assert share_autoencoder(source, target)
    assert sorted(path.relative_to(target) for path in target.rglob("*")) == [
        Path("autoencoder"),
        Path("autoencoder/metrics.json"),
        Path("autoencoder/trained.safetensors"),
    ]
    # One that has begun its own goes on with it.
    (source / "autoencoder" / "trained.safetensors").write_bytes(b"others")
    assert not share_autoencoder(source, target)
    assert (target / "autoencoder" / "trained.safetensors").read_bytes() == b"weights"
