"""validate_shards as a command: exit codes, the page, one-line errors, Ctrl-C."""

import functools
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from vlad.cli.shards import CHECK
from vlad.data.options import SyntheticOptions
from vlad.data.shards.writer import write_manifest, write_shards
from vlad.data.signs import render_sign

TOOL = Path(__file__).parents[2] / "tools" / "validate_shards.py"
SIGNS = [render_sign(SyntheticOptions(size_pixels=32), index) for index in range(40)]


@pytest.fixture
def validate(call_verb):
    """The verb in this process: arguments -> exit code, what it printed, what it complained of."""
    return functools.partial(call_verb, CHECK)


@pytest.fixture
def refused(validate):
    """What the verb says when it refuses: one line, no traceback, exit code 2."""

    def run(*arguments):
        code, out, complaint = validate(*arguments)
        assert (code, out) == (2, "")
        assert complaint.startswith("error: ")
        assert complaint.count("\n") == 1
        return complaint

    return run


@pytest.fixture
def shards(tmp_path):
    (tmp_path / "shards").mkdir()
    write_manifest(tmp_path / "shards", write_shards(SIGNS, tmp_path / "shards", samples_per_shard=15), {})
    return tmp_path / "shards"


def test_a_sound_set_exits_with_0_and_writes_a_page_with_images(validate, shards, tmp_path):
    code, out, complaint = validate(
        shards, "--html", tmp_path / "page", "--resolutions", 64, "--batch-size", 20, "--ranks", 2
    )
    assert code == 0, complaint
    assert "the set is sound" in out
    assert "2 ranks x batches of 20, any shards and workers: needs 40 samples: feasible" in out
    assert "40/40" in complaint
    assert "sample/s" in complaint
    names = ["contact_sheet.png", "findings.jsonl", "report.html"]
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == names
    page = (tmp_path / "page/report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 25
    assert page.count("<figcaption>") == 25
    with Image.open(tmp_path / "page/contact_sheet.png") as sheet:
        assert sheet.width > 1000
    assert (tmp_path / "page/findings.jsonl").read_text() == ""


def test_findings_exit_with_1_and_are_all_listed(validate, shards, tmp_path):
    broken = shards / "000001.tar"
    broken.write_bytes(broken.read_bytes()[:700])
    code, out, complaint = validate(shards, "--html", tmp_path / "page", "--batch-size", 1000)
    assert code == 1, complaint
    records = [json.loads(line) for line in (tmp_path / "page/findings.jsonl").read_text().splitlines()]
    assert {record["kind"] for record in records} >= {"shard", "manifest", "launch"}
    assert all(record["shard"] == str(broken) for record in records if record["kind"] == "shard")
    assert str(broken) in out
    assert "too few samples" in out
    code, out, _ = validate(shards, "--quick")
    assert code == 1
    assert f"{broken}: it has 700 bytes" in out


def test_usage_errors_exit_with_2_and_one_line(refused, shards, tmp_path):
    assert "SHARDS: there are no shards at" in refused(tmp_path / "none")
    assert "SHARDS: 'xxx" in refused("x" * 300)
    assert "would run a program" in refused("pipe:cat x")
    assert "Did you mean 's3'" in refused("s33://bucket/a")
    assert "--resolutions: a resolution of 100 pixels is no multiple" in refused(shards, "--resolutions", 100)
    assert "--max-aspect" in refused(shards, "--max-aspect", 0.5)
    assert "--ranks" in refused(shards, "--ranks", 0)
    assert "--examples" in refused(shards, "--images", -1)
    assert "nothing is written there" in refused(shards, "--html", shards)
    (tmp_path / "file").touch()
    assert "Cannot write the report" in refused(shards, "--html", tmp_path / "file")
    (shards / "manifest.json").unlink()
    assert "leave out --quick" in refused(shards, "--quick")


def test_ctrl_c_prints_the_report_so_far(shards):
    code = (
        "import os, runpy, signal, sys\n"
        "from vlad.data.lint import linter\n"
        "real = linter.KeyIndex.add\n"
        "def add(self, key, shard):\n"
        "    real(self, key, shard)\n"
        "    if key == '00000017': os.kill(os.getpid(), signal.SIGINT)\n"
        "linter.KeyIndex.add = add\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(TOOL), str(shards)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        # A shell that runs the tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert run.returncode == 128 + signal.SIGINT
    assert "Interrupted" in run.stdout
    assert "samples                       30" in run.stdout
    assert "Traceback" not in run.stderr
