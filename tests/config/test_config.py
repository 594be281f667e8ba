"""Configs: what a person writes is read, and every mistake is told with its place and the remedy."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlad.config.load import bundled_configs, load_config, save_config
from vlad.config.schema import Config
from vlad.lora.options import LoraOptions
from vlad.utils.errors import UserError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a config file and gives its path."""

    def write_text(text: str, name: str = "config.yaml") -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write_text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_that_comes_with_the_code_loads_and_survives_saving(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    save_config(config, tmp_path / "saved.yaml")

    assert load_config(tmp_path / "saved.yaml") == config


def test_the_embedded_default_is_among_them() -> None:
    assert "tiny.yaml" in [path.name for path in CONFIGS]


def test_a_config_of_unusual_values_survives_saving(tmp_path: Path) -> None:
    config = replace(Config(), name="naïve: #1 “日本”", base="null", lora=LoraOptions(rank=3, unet_targets=("to_q",)))
    config = replace(
        config, trainer=replace(config.trainer, devices="2"), data=replace(config.data, max_bad_share=1e-7)
    )
    save_config(config, tmp_path / "saved.yaml")

    loaded = load_config(tmp_path / "saved.yaml")

    assert loaded == config
    hash(loaded)  # frozen through and through: tuples, no node of the reader's library


def test_overrides_win_in_their_order_and_reach_every_level(write: Callable[..., Path]) -> None:
    path = write("name: mine\nseed: 3\ntrain: {layout: {steps: 7}}\n")

    config = load_config(
        path, ["seed=4", "layout.unet.block_channels=[32,64]", "seed=5", "lora.rank=2", "data.shards=a=b"]
    )

    assert (config.name, config.seed, config.train.layout.steps) == ("mine", 5, 7)
    assert config.layout.unet.block_channels == (32, 64)
    assert config.lora == LoraOptions(rank=2)
    assert config.data.shards == "a=b"
    assert config.refine == Config().refine


def test_lora_is_off_unless_named(write: Callable[..., Path]) -> None:
    assert load_config(write("name: x")).lora is None
    assert load_config(write("lora: {}")).lora == LoraOptions()


def test_a_file_may_start_from_another_beside_it(write: Callable[..., Path]) -> None:
    write("seed: 1\ndata: {batch_size: 8, workers: 0}\nname: first", "first.yaml")
    write("inherit: first.yaml\ndata: {batch_size: 16}\nname: second", "second.yaml")
    config = load_config(write("inherit: second.yaml\nname: third"), ["data.workers=2"])

    assert (config.name, config.seed, config.data.batch_size, config.data.workers) == ("third", 1, 16, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nmae: x", r"config\.yaml: there is no option 'nmae'\. Did you mean 'name'\?"),
        ("data: {batchsize: 3}", r"there is no option 'batchsize' in data\. Did you mean 'batch_size'\?"),
        ("data: {synthetic: {cuont: 3}}", r"no option 'cuont' in data\.synthetic\. Did you mean 'count'\?"),
        ("lora: {rnak: 4}", r"no option 'rnak' in lora\. Did you mean 'rank'\?"),
        ("trainer: {zzz: 1}", r"no option 'zzz' in trainer\. Known: accelerator, devices"),
        ("data: {batch_size: many}", r"config\.yaml: data\.batch_size: Value 'many' of type 'str'"),
        ("seed: 1.5", r"config\.yaml: seed: Value '1.5'"),
        ("trainer: {precision: 8}", r"trainer\.precision: Invalid value '8', expected one of \['32-true'"),
        ("layout: {unet: {block_channels: [32, x]}}", r"layout\.unet\.block_channels: \[32, x\] does not fit"),
        ("layout: {unet: {block_channels: 32}}", r"layout\.unet\.block_channels: "),
        ("data: 3", r"config\.yaml: data: 3 does not fit"),
        ("data: null", r"config\.yaml: data: "),
        ("name: ${nope}", r"config\.yaml: name: Interpolation key 'nope' not found"),
        ("lora: {rank: 0}", r"lora: rank must be at least 1"),
        ("layout: {noise: {prediction: flow, zero_terminal_snr: true}}", r"noise: prediction: flow takes neither"),
        ("name: [", r"config\.yaml is not YAML: .*line 1"),
        ("- name", r"config\.yaml is not a config: expected keys and values"),
        ("name: a\nname: b", r"config\.yaml is not YAML: .*duplicate key name"),
        ("inherit: nowhere.yaml", r"There is no config at .*nowhere\.yaml"),
        ("inherit: config.yaml", r"config\.yaml inherits itself"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_place(write: Callable[..., Path], text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(write(text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch_size", r"'data\.batch_size' is not an override; write key=value"),
        ("--name=x", r"'--name=x' is not an override"),
        (
            "data.batchsize=3",
            r"the override 'data\.batchsize=3': there is no option 'batchsize' in data\. Did you mean",
        ),
        ("lora.rnak=4", r"the override 'lora\.rnak=4': there is no option 'rnak' in lora\. Did you mean 'rank'\?"),
        ("data.batch_size=many", r"the override .*: data\.batch_size: Value 'many'"),
        ("data=3", r"the override 'data=3': data: 3 does not fit"),
        ("data.mix=[1", r"override 'data\.mix=\[1' is not YAML"),
        ("data.mix.0.shards=a", r"data\.mix is a list; override it as a whole: data\.mix=\[\.\.\.\]"),
        ("=x", r"the override '=x': "),
    ],
)
def test_a_mistake_in_an_override_is_told_with_it(write: Callable[..., Path], override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(write("name: x"), ["seed=1", override])


def test_options_that_only_fit_together_may_come_in_any_order(write: Callable[..., Path]) -> None:
    path = write("layout: {noise: {prediction: sample, zero_terminal_snr: true}}")
    config = load_config(path, ["layout.noise.prediction=flow", "layout.noise.zero_terminal_snr=false"])
    assert config.layout.noise.prediction == "flow"


def test_a_missing_file_is_told_with_where_to_look(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.yaml", tmp_path):
        with pytest.raises(UserError, match=rf"There is no config at {path}; name a file, or one .*: align_tiny, "):
            load_config(path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"config\.yaml is not YAML"):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.mkdir [{}]",
        "!!python/name:os.system ''",
        "!!python/module:antigravity ''",
    ],
)
def test_a_config_runs_and_imports_nothing(write: Callable[..., Path], tmp_path: Path, value: str) -> None:
    trace = tmp_path / "trace"
    with pytest.raises(UserError, match="could not determine a constructor for the tag"):
        load_config(write(f"name: {value.format(trace)}"))
    assert not trace.exists()
    with pytest.raises(UserError):
        load_config(write("name: x"), [f"name={value.format(trace)}"])
    assert not trace.exists()


def test_sets_are_mixed_by_their_weights(write: Callable[..., Path]) -> None:
    config = load_config(write("data: {mix: [{shards: a, weight: 3}, {shards: b}]}"))
    assert config.data.sets == {"a": 3.0, "b": 1.0}
    assert load_config(write("name: x"), ["data.mix=[{shards: c}]"]).data.sets == {"c": 1.0}
    with pytest.raises(UserError, match="no option 'weigth'"):
        load_config(write("data: {mix: [{shards: a, weigth: 3}]}"))
    with pytest.raises(UserError, match="must be positive"):
        load_config(write("data: {mix: [{shards: a, weight: 0}]}"))
    with pytest.raises(UserError, match="every set needs shards of its own"):
        load_config(write("data: {mix: [{shards: a}, {shards: a}]}")).data.sets  # noqa: B018


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("losses.align_weight=nan", "losses.align_weight must be a finite number"),
        ("data.max_aspect=.inf", "max_aspect"),
        ("lora={alpha: .nan}", "alpha"),
        ("data.workers=100000", "data.workers must be from 0 to 512"),
        ("trainer.devices=99999", "trainer.devices must be auto or a number from 1 to 256"),
        ("losses={hard_negatives: 100000, alignment: sigmoid}", "hard_negatives and rewordings must be from 0 to 64"),
        ("data.synthetic.digit_share=2", "data.synthetic.digit_share must be a share"),
        ("data.fetch.timeout_seconds=1e300", "timeout_seconds above 0 and at most a day"),
        ("data.fetch.backoff_seconds=1e300", "backoff_seconds from 0 to a day"),
        ("data.fetch.retries=1000000000", "retries must be from 0 to 1000"),
        ("seed=-1", "seed must be from 0"),
        ("data.bucket_step_pixels=0", "bucket_step_pixels"),
        ("data.resolutions=[0]", "resolutions"),
        ("train.layout.accumulate_batches=0", "accumulate_batches"),
        ("train.refine.clip_grad_norm=-1", "clip_grad_norm"),
        ("lvlm.layers=0", "lvlm: layers"),
        ("lvlm.vision_pixels=7", "vision_pixels"),
        ("lvlm.vision_hidden_size=63", "vision_hidden_size"),
        ("composition.width=0", "composition: width"),
        ("composition.layers=1000000000000", r"composition\.layers is 1000000000000; 1024 is the most"),
        ("composition.max_characters=100000", r"composition\.max_characters is 100000"),
        ("composition.slots=100000000", r"composition\.slots"),
        ("lvlm.layers=100000000", r"lvlm\.layers"),
        ("autoencoder.decoder_layers=100000000", r"autoencoder\.decoder_layers"),
        ("layout.unet.block_channels=[32,320000000]", r"unet\.block_channels"),
        ("refine.unet.layers_per_block=100000000", r"unet\.layers_per_block"),
        ("composition.layers=-1", "layers"),
        ("layout.unet.block_channels=[0]", "positive multiples of 32"),
        ("autoencoder.latent_channels=0", "latent_channels"),
        ("autoencoder.patch_pixels=-8", "patch_pixels"),
        ("autoencoder.decoder_width=12", "decoder_width"),
        ("trainer.sample_every_steps=-5", "sample_every_steps must be 0"),
        ("name=../elsewhere", "not the name of one folder"),
        ("name=''", "not the name of one folder"),
    ],
)
def test_numbers_that_no_run_can_have_are_refused(write: Callable[..., Path], override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        config = load_config(write("name: x"), [override])
        config.data.stream(0)


@pytest.mark.parametrize(
    ("written", "option", "value"),
    [
        ("trainer.wandb=off", "trainer.wandb", "off"),
        ("data.trigger_word=no", "data.trigger_word", "no"),
        ("data.trigger_word=null", "data.trigger_word", None),
        ("data.trigger_word=~", "data.trigger_word", None),
        ("data.trigger_word='null'", "data.trigger_word", "null"),
        ("name=3.10", "name", "3.10"),
        ("name=1e3", "name", "1e3"),
        ("name=2026-12-01", "name", "2026-12-01"),
        ("name=a: b # c", "name", "a: b # c"),
        ("name='quoted'", "name", "quoted"),
        ("name=yes", "name", "yes"),
        ("train.layout.steps=010", "train.layout.steps", 10),
        ("train.layout.learning_rate=1e-4", "train.layout.learning_rate", 1e-4),
        ("trainer.devices=2", "trainer.devices", "2"),
        ("data.verify=off", "data.verify", False),
        ("sample.refit=No", "sample.refit", False),
        ("data.resolutions=[064, 128]", "data.resolutions", (64, 128)),
        ("data.shards=~/shards", "data.shards", str(Path("~/shards").expanduser())),
        ("data.mix=[{shards: ~/a}]", "data.mix.0.shards", str(Path("~/a").expanduser())),
        ("data.shards=a{000..009}.tar", "data.shards", "a{000..009}.tar"),
    ],
)
def test_the_schema_says_what_a_value_is_not_yaml(
    write: Callable[..., Path], written: str, option: str, value: Any
) -> None:
    loaded = load_config(write(""), [written])
    found: Any = loaded
    for name in option.split("."):
        found = found[int(name)] if name.isdecimal() else getattr(found, name)
    assert (found, type(found)) == (value, type(value))
    # In a file as on the command line, and back.
    key, _, text = written.partition("=")
    for name in reversed(key.split(".")):
        text = f"{{{name}: {text}}}"
    if "#" not in written and "..." not in written and "{000" not in written and "~/" not in written:
        assert load_config(write(text)) == loaded
    copy = write("")
    save_config(loaded, copy)
    assert load_config(copy) == loaded


@pytest.mark.parametrize("mistake", ["train.layout.steps=12:30", "train.layout.steps=0x10", "data.verify=maybe"])
def test_what_is_no_decimal_number_or_switch_is_refused(write: Callable[..., Path], mistake: str) -> None:
    with pytest.raises(UserError, match=mistake.partition("=")[0].replace(".", r"\.")):
        load_config(write(""), [mistake])


def test_text_that_looks_like_a_reference_comes_back_as_text(write: Callable[..., Path]) -> None:
    loaded = load_config(write("name: a-\\${seed}"))
    assert loaded.name == "a-${seed}"
    copy = write("")
    save_config(loaded, copy)
    assert load_config(copy) == loaded
    assert load_config(write("seed: 3\nname: a-${seed}")).name == "a-3"


@pytest.mark.parametrize(
    "value", ["${oc.env:TOKEN}", "a${oc.env:TOKEN,none}b", "${oc.decode:${oc.env:TOKEN}}", "\\\\${oc.env:TOKEN}"]
)
def test_a_config_reads_no_environment_variables(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "s3cr3t")
    parent, child = tmp_path / "parent.yaml", tmp_path / "child.yaml"
    parent.write_text(
        f"inherit: {bundled_configs() / 'tiny.yaml'}\ndata: {{trigger_word: '{value}'}}\n", encoding="utf-8"
    )
    child.write_text("inherit: parent.yaml\n", encoding="utf-8")
    for path, overrides in ((child, []), (bundled_configs() / "tiny.yaml", [f"data.trigger_word={value}"])):
        with pytest.raises(UserError, match="calls a function of OmegaConf") as caught:
            load_config(path, overrides)
        assert "s3cr3t" not in str(caught.value)
