"""Secrets of URLs are in no file and no message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlad.config.load import load_config, save_config
from vlad.data.quarantine import Quarantine
from vlad.data.storage.object_stores import check_location
from vlad.training.provenance import describe_start
from vlad.training.publish import adapter_recipe
from vlad.training.resume import check_run_directory, config_record
from vlad.utils.command_line import run_command_line
from vlad.utils.errors import UserError
from vlad.utils.secrets import redacted

SECRET = "s3cr3t-Value"
URLS = [
    f"https://user:{SECRET}@host/signs/{{000..003}}.tar",
    f"https://host/signs/0.tar?X-Amz-Signature={SECRET}&X-Amz-Expires=60",
    f"https://host/signs/0.tar?sv=1&sig={SECRET}",
    f"s3://{SECRET}@bucket/signs",
    f"HTTPS://token:{SECRET}@host/a/b.tar?token={SECRET}",
]


@pytest.mark.parametrize("url", URLS)
def test_nothing_that_is_written_or_printed_holds_a_secret(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text("lora: {rank: 2}\nbase: runs/x", encoding="utf-8")
    config = load_config(tmp_path / "c.yaml", [f"data.shards={url}", f"runs={tmp_path}", "name=run"])
    assert config.data.shards == url  # in memory it is whole
    config.directory.mkdir()
    save_config(config, config.directory / "config.yaml")
    Quarantine(tmp_path / "quarantine.jsonl").add("k", url, f"{url} answers 403")
    monkeypatch.setattr("sys.argv", ["train.py", f"data.shards={url}"])

    def fail() -> None:
        raise UserError(f"{url} answers 403.")

    with pytest.raises(SystemExit):
        run_command_line(fail)
    written = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.*") if path.is_file()]
    written += [
        json.dumps(facts) for facts in (config_record(config, "layout"), adapter_recipe(config), describe_start())
    ]
    written += [*capsys.readouterr()]
    assert not [text for text in written if SECRET in text]
    assert any("***" in text for text in written)
    check_run_directory(config)  # the same command resumes
    with pytest.raises(UserError, match=r"secret of .* is not stored; give it again"):
        check_location(load_config(config.directory / "config.yaml").data.shards)


@pytest.mark.parametrize(
    "text", ["a picture of user@host", "data/signs", "is 3 > 2? yes", "https://host/a/b.tar", "abfs://c@account/b"]
)
def test_texts_without_secrets_stay(text: str) -> None:
    assert redacted(text) == text
