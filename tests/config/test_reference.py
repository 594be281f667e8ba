"""The reference of all options is complete, and as fresh as the code."""

import json
from pathlib import Path

import pytest

from vlad.config.load import load_config
from vlad.config.reference import all_options, config_schema, options_page

ROOT = Path(__file__).parents[2]
AGAIN = "run: vlad options"


def test_the_page_and_the_schema_are_fresh() -> None:
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == options_page(), AGAIN
    written = json.loads((ROOT / "docs" / "config.schema.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(config_schema())), AGAIN


def test_every_option_says_what_it_means() -> None:
    assert [option.key for option in all_options() if len(option.meaning) < 8] == []


def test_keys_are_those_that_a_config_takes() -> None:
    config = load_config(ROOT / "configs" / "tiny.yaml")
    keys = [option.key for option in all_options()]
    assert len(set(keys)) == len(keys) > 250
    for key in keys:
        value = config
        for name in key.split("."):
            value = getattr(value, name)
            if value is None:  # a section that this config leaves out
                break


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_schema_knows_every_key_of_our_configs(config: Path) -> None:
    from omegaconf import OmegaConf

    def check(values: object, schema: dict) -> None:
        options = schema.get("anyOf", [schema])
        known = next((one for one in options if "properties" in one), None)
        if isinstance(values, dict) and known is not None:
            for key, value in values.items():
                assert key in known["properties"], key
                check(value, known["properties"][key])

    check(OmegaConf.to_container(OmegaConf.load(config)), config_schema())
