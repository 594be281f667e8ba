"""The command lines: every verb explains itself at once, and every script calls its verb."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlad.cli.main import VLAD
from vlad.cli.verb import Verb, VerbGroup
from vlad.utils.errors import UserError

ROOT = Path(__file__).parents[2]
SCRIPTS = [ROOT / "train.py", ROOT / "sample.py", *sorted((ROOT / "tools").glob("*.py"))]
HEAVY = ("torch", "numpy", "PIL", "cv2", "omegaconf", "lightning", "diffusers", "transformers", "peft", "gradio")


def all_verbs(group: VerbGroup, before: str = "vlad") -> Iterator[tuple[str, Verb]]:
    for section in group.sections.values():
        for verb in section:
            name = f"{before} {verb.name}"
            if isinstance(verb, Verb):
                yield name, verb
            else:
                yield from all_verbs(verb, name)


def test_parsers_are_built_without_heavy_imports() -> None:
    program = (
        "import sys\nfrom vlad.cli.main import VLAD\n"
        "def build(group):\n"
        "    for section in group.sections.values():\n"
        "        for verb in section:\n"
        "            verb.parser() if hasattr(verb, 'parser') else build(verb)\n"
        f"build(VLAD)\nprint(*(name for name in {HEAVY} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(("name", "verb"), all_verbs(VLAD), ids=lambda value: value if isinstance(value, str) else "")
def test_every_verb_explains_itself(name: str, verb: Verb, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        verb(["--help"], name)
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {name} ")
    assert verb.about.endswith(".")
    assert all(action.help for action in verb.parser()._actions)
    with pytest.raises(UserError, match="--nonsense"):
        verb(["--nonsense"], name)


def test_the_command_lists_its_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert VLAD([], "vlad") == 0
    listed = capsys.readouterr().out
    assert all(f"\n  {name.split()[1]} " in listed for name, _ in all_verbs(VLAD))
    with pytest.raises(UserError, match=r"vlad has no verb 'trian'\. Did you mean 'train'\?"):
        VLAD(["trian", "tiny"], "vlad")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_only_calls_its_verb(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 10
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    called = [value for value in vars(module).values() if isinstance(value, Verb | VerbGroup)]
    assert called and all(verb in [*(v for _, v in all_verbs(VLAD)), *_groups(VLAD)] for verb in called)


def _groups(group: VerbGroup) -> Iterator[VerbGroup]:
    for section in group.sections.values():
        for verb in section:
            if isinstance(verb, VerbGroup):
                yield verb
