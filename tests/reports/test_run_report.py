"""report.html of a run, from files whole and cut short."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from vlad.reports.curves import read_curves
from vlad.reports.run_report import write_run_report
from vlad.reports.starts import record_start
from vlad.training.provenance import describe_start


class Links(HTMLParser):
    """The addresses that a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]
        assert tag != "script"


def test_the_report_of_a_run_contains_everything_it_shows(tmp_path: Path) -> None:
    run = tmp_path / "signs & <posters>"
    for start, rows in (("from-step-00000000", "0,2,1\n1,1,1\n2,,9\n"), ("from-step-00000002", "2,0.5,3\n3,nan,4\n")):
        logs = run / "layout" / "logs" / start
        logs.mkdir(parents=True)
        (logs / "metrics.csv").write_text("step,loss,noise_0\n" + rows)
    (run / "samples" / "layout").mkdir(parents=True)
    for step, colour in ((10, "red"), (20, "green"), (30, "blue")):
        Image.new("RGB", (4, 4), colour).save(run / "samples" / "layout" / f"step-{step:08d}.png")
    (run / "config.yaml").write_text('name: "<b>"\n')
    for command in ("python train.py a.yaml", 'python train.py a.yaml name="<i>"'):
        record_start(run, {**describe_start(), "command": command})

    # A step that two starts have logged counts once, with the later one's value.
    assert read_curves(run / "layout")["noise_0"] == [(0, 1.0), (1, 1.0), (2, 3.0), (3, 4.0)]
    page = write_run_report(run).read_text(encoding="utf-8")

    links = Links()
    links.feed(page)
    kinds = [link.split(";")[0] for link in links.found]
    assert kinds == ["data:image/png"] * 2
    first, newest = (base64.b64decode(link.split(",")[1]) for link in links.found)
    assert first == (run / "samples" / "layout" / "step-00000010.png").read_bytes()
    assert newest == (run / "samples" / "layout" / "step-00000030.png").read_bytes()
    assert re.findall(r'<svg .* aria-label="(.*)">', page) == [
        "loss",
        "loss by noise level, 0 hardly any to 9 nearly all",
    ]
    assert page.count('<div class="curves">') == 1  # a grid as wide as the page
    assert "<b>" not in page
    assert "<i>" not in page
    assert "signs &amp; &lt;posters&gt;" in page
    assert "under way, step 4" in page
    assert re.search(r"<th>revision</th><td>([0-9a-f]{40}|vlad )", page)
    assert not list(run.rglob("*.partial"))


def test_files_that_a_kill_has_cut_short_do_not_keep_a_run_from_its_report(tmp_path: Path) -> None:
    logs = tmp_path / "align" / "logs" / "from-step-00000000"
    logs.mkdir(parents=True)
    whole = "align,step,training_loss\n0.5,0,0.25\n0.5,1,0.2"
    rows = {
        "0.5": 1,
        "0.5,": 1,
        "0.5,1,0.2": 1,
        "0.5,1,0.2\n": 2,
        "0.5,1,0.2\n0.4,2,0.25,0.3,3,1\n": 2,
        "0.5,1,0.2e-\n": 1,
    }
    for end, count in rows.items():
        (logs / "metrics.csv").write_text(whole.removesuffix("0.5,1,0.2") + end)
        assert len(read_curves(tmp_path / "align")["align"]) == count, end
    record_start(tmp_path, {"command": "one"})
    with (tmp_path / "starts.jsonl").open("a") as stream:
        stream.write('{"command": "tw')
    record_start(tmp_path, {"command": "three"})
    page = write_run_report(tmp_path).read_text(encoding="utf-8")
    assert "<h2>align</h2>" in page
    assert "one" in page and "three" in page
