"""The demo's order of commands, and the page that opens with the released model."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlad.cli.examples import DEMO, POSTER_PROMPTS
from vlad.cli.sample import APP
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.utils.errors import UserError


@pytest.mark.parametrize("released", [True, False])
def test_posters_come_before_the_training(released: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[tuple[str, ...]] = []

    def run(_: object, *command: str, **__: object) -> int:
        commands.append(command)
        return 2 if command[0] == "train" else 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vlad.utils.subprocesses.ChildCommands.run", run)
    monkeypatch.setattr("vlad.config.load.released_model", lambda: Path("models/poster") if released else None)
    with pytest.raises(UserError, match=r"the demo stopped at: vlad train configs/tiny\.yaml"):
        DEMO([], "vlad demo")
    assert [command[0] for command in commands] == [*["sample"] * released, "shards", "train"]
    if released:
        assert commands[0][1] == "models/poster"
        prompts = Path(commands[0][commands[0].index("--prompts") + 1]).read_text(encoding="utf-8").splitlines()
        assert prompts == list(POSTER_PROMPTS)


def test_the_prompts_of_the_posters_ask_for_lines_that_the_model_takes() -> None:
    assert len(POSTER_PROMPTS) == 9
    for prompt in POSTER_PROMPTS:
        strings = parse_prompt(prompt).strings
        assert 1 <= len(strings) <= 4
        assert all(len(string) <= 16 for string in strings)


def test_without_a_released_model_the_page_asks_for_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlad.config.load.released_model", lambda: None)
    with pytest.raises(UserError, match="name a run or a pipeline folder"):
        APP([], "vlad app")
