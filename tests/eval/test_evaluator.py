"""Benchmark evaluation: images found or generated, OCR, metrics, report."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from vlad.data.options import SyntheticOptions
from vlad.data.signs import render_sign
from vlad.data.words import held_out_words
from vlad.eval.benchmark import parallel_ocr
from vlad.eval.benchmark.benchmark_report import write_report
from vlad.eval.benchmark.evaluator import choose_protocols, evaluate
from vlad.eval.benchmark.image_generation import check_generation, generate_images, image_seed
from vlad.eval.benchmark.image_sets import BenchmarkImage, find_images
from vlad.eval.benchmark.parallel_ocr import ImageFile, ocr_images
from vlad.eval.benchmark.prompt_files import quoted
from vlad.eval.benchmark.terminal_report import text_table
from vlad.eval.image_files import load_image
from vlad.eval.options import OCROptions
from vlad.eval.protocols import PROTOCOLS
from vlad.eval.protocols.protocol import BenchmarkPrompt
from vlad.layout.line_crops import crop_line
from vlad.layout.polygons import box_polygon
from vlad.metrics.ocr import default_enlarge_factor
from vlad.types import Layout
from vlad.utils.errors import UserError

SIGNS = [render_sign(SyntheticOptions(seed=4, ground_share=0.0), index, held_out_words()) for index in range(6)]
PROMPTS = [
    BenchmarkPrompt(str(number), sign.caption, quoted(sign.caption), sign.layout.lines, "ab"[number % 2])
    for number, sign in enumerate(SIGNS)
]
ONE = OCROptions(workers=1)


class SignGenerator:
    """Returns the sign that the prompt describes; lists what it generates."""

    takes_layouts = True
    batch_size = 4

    def __init__(self, steps: int = 1) -> None:
        self.steps = steps
        self.generated: list[tuple[str, int]] = []

    def settings(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def refusal(self, prompt: BenchmarkPrompt, layout: Layout | None) -> str | None:
        return "too long" if len(prompt.text) > 200 else None

    def generate(
        self, prompts: Sequence[BenchmarkPrompt], seeds: Sequence[int], layouts: Sequence[Layout] | None
    ) -> list[tuple[Image.Image, Layout | None]]:
        self.generated += [(prompt.key, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        return [(Image.fromarray(SIGNS[int(w.key)].image), SIGNS[int(w.key)].layout) for w in prompts]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an image of every prompt."""
    images = tmp_path / "made"
    images.mkdir()
    for number, sign in enumerate(SIGNS):
        Image.fromarray(sign.image).save(images / f"{number}.png")
    return images


def test_perfect_images_score_full_marks_by_every_protocol(folder: Path, tmp_path: Path) -> None:
    protocols, left_out = choose_protocols("all", PROMPTS, follows_polygons=True)
    assert (len(protocols), left_out) == (6, {})
    found = evaluate(find_images(folder, PROMPTS, None), protocols, ONE, tmp_path)
    assert (found.prompts, found.images, found.is_partial, found.sizes) == (6, 6, False, {(64, 64)})
    for name, modes in found.metrics.items():
        for metric, (value, low, high) in modes["corrected"].items():
            best = 0 if metric in PROTOCOLS[name].lower_is_better else 1
            assert value == pytest.approx(best, abs=0.05), (name, metric)
            assert low <= value <= high
    # Strict MARIO-Eval takes straight single marks alone: it finds no target text in these prompts.
    assert found.metrics["mario"]["strict"] == {} and set(found.left_out) == {"mario, strict"}
    assert set(found.subsets["mario"]) == {"a", "b"}
    rows = parquet.read_table(tmp_path / "per_image.parquet").to_pylist()
    assert [row["id"] for row in rows] == list("012345")
    assert rows[0]["read"] == rows[0]["wanted"] == list(PROMPTS[0].strings)
    assert rows[0]["mario.corrected.f_measure"] == pytest.approx(1)
    assert {row["status"] for row in rows} == {"read"}
    assert found.breakdown.to_json()["case"]["upper"]["strings"] == 6

    write_report(tmp_path / "report.html", found, "a <title>", [("OCR engine", found.engine)])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "a &lt;title&gt;" in page
    assert 'src="data:image/png;base64,' in page and "Partial" not in page
    # Nothing is loaded from elsewhere.
    assert "://" not in page and "<script" not in page
    assert page.count("<figure>") == 6
    assert f"<dd><b>{PROMPTS[0].strings[0]}</b></dd>" in page
    assert "mario" in text_table(found)
    assert json.loads(json.dumps(found.to_json()))["protocols"]["cvtg"]["corrected"]["ned"]["value"] == pytest.approx(1)


def test_missing_and_unreadable_images_are_counted_and_named(folder: Path, tmp_path: Path) -> None:
    (folder / "0.png").unlink()
    (folder / "3.png").write_bytes(b"no image")
    whole = (folder / "4.png").read_bytes()
    (folder / "4.png").write_bytes(whole[: len(whole) // 2])
    (folder / "5.png").unlink()
    found = evaluate(find_images(folder, PROMPTS, None), [PROTOCOLS["mario"]], ONE, tmp_path)
    assert found.is_partial
    assert found.missing == ["0_0", "5_0"]
    assert [fault.partition(": ")[0] for fault in found.unreadable] == [str(folder / "3.png"), str(folder / "4.png")]
    assert found.unreadable[0].endswith("is no image")
    # The scores are of the other two.
    assert found.prompts == 2
    assert found.metrics["mario"]["corrected"]["recall"][0] == pytest.approx(1, abs=1e-6)
    rows = parquet.read_table(tmp_path / "per_image.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["missing", "read", "read", "unreadable", "unreadable", "missing"]
    write_report(tmp_path / "report.html", found, "x", [])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "of 6 images 2 are missing and 2 cannot be read" in page and "missing: 5_0" in page


def test_stored_ocr_results_are_reused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = find_images(folder, PROMPTS[:3], None)
    first = evaluate(images, [PROTOCOLS["anytext"]], ONE, tmp_path)
    reads: list[Path] = []
    load = parallel_ocr.load_image

    def counted(path: Path) -> np.ndarray:
        reads.append(path)
        return load(path)

    monkeypatch.setattr(parallel_ocr, "load_image", counted)
    assert evaluate(images, [PROTOCOLS["anytext"]], ONE, tmp_path).metrics == first.metrics
    # Whole images were read as well: a protocol without crops needs no more.
    evaluate(images, [PROTOCOLS["mario"]], ONE, tmp_path)
    assert reads == []
    Image.fromarray(SIGNS[1].image[:, ::-1].copy()).save(folder / "0.png")
    evaluate(images, [PROTOCOLS["mario"]], ONE, tmp_path)
    assert reads == [folder / "0.png"]
    evaluate(images, [PROTOCOLS["mario"]], OCROptions(enlarge_factor=3, workers=1), tmp_path)
    assert len(reads) == 4


def test_several_processes_read_as_one_does(folder: Path, tmp_path: Path) -> None:
    def files(name: str) -> list[ImageFile]:
        (tmp_path / name).mkdir()
        found = [
            ImageFile(folder / f"{n}.png", tmp_path / name / f"{n}.json", (sign.layout.lines[0].polygon,))
            for n, sign in enumerate(SIGNS[:3])
        ]
        return [*found, ImageFile(folder / "none.png", tmp_path / name / "none.json")]

    alone = list(ocr_images(files("one"), ONE))
    several = files("two")

    def arriving() -> Iterator[ImageFile]:
        """Gives the others only once the first is read: reading does not wait for the last image."""
        yield several[0]
        while not several[0].store.is_file():
            time.sleep(0.05)
        yield from several[1:]

    assert list(ocr_images(arriving(), OCROptions(workers=2))) == alone
    assert alone[-1].fault and not alone[0].fault
    assert [ocr.result.crops for ocr in alone[:2]] == [(SIGNS[n].layout.lines[0].text,) for n in range(2)]


def test_few_images_are_taken_ahead_of_ocr(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    taken = 0

    def images() -> Iterator[ImageFile]:
        nonlocal taken
        for number in range(14):
            taken += 1
            yield ImageFile(tmp_path / "a.png", tmp_path / f"{number}.json")

    ahead = [taken - done for done, _ in enumerate(ocr_images(images(), OCROptions(workers=2)), start=1)]
    assert len(ahead) == 14
    assert max(ahead) <= 8


def test_images_are_generated_once_and_generation_resumes(tmp_path: Path) -> None:
    def generate(
        generator: SignGenerator, prompts: Sequence[BenchmarkPrompt] = PROMPTS, seed: int = 0
    ) -> list[BenchmarkImage]:
        return list(generate_images(generator, prompts, 2, seed, False, tmp_path))

    stopped = SignGenerator()
    images = generate_images(stopped, PROMPTS, 2, 0, False, tmp_path)
    assert [next(images).name for _ in range(2)] == ["0_0", "0_1"]
    images.close()  # type: ignore[attr-defined]
    assert len(stopped.generated) == 4
    (tmp_path / "images" / "0_1.png").unlink()
    later = SignGenerator()
    found = generate(later)
    assert [image.name for image in found] == [f"{n}_{s}" for n in range(6) for s in range(2)]
    assert all(image.path is not None and image.path.is_file() for image in found)
    assert sorted(key for key, _ in later.generated) == [*"022334455"]
    assert generate(SignGenerator()) == found
    # The same noise in any batch; another for every image.
    assert len({seed for _, seed in (*stopped.generated, *later.generated)}) == 12
    assert ("0", image_seed(0, "0", 1)) in later.generated
    # The layout beside the image says how high its letters are.
    bare = BenchmarkPrompt("0", PROMPTS[0].text, PROMPTS[0].strings)
    beside = BenchmarkImage(bare, 0, tmp_path / "images" / "0_0.png").polygons()
    assert np.allclose(beside[0], SIGNS[0].layout.lines[0].polygon, atol=1e-4)
    with pytest.raises(UserError, match=r"generated with other settings \(steps 1, now 2\); name another folder"):
        generate(SignGenerator(steps=2))
    with pytest.raises(UserError, match="seed 0, now 1"):
        generate(SignGenerator(), seed=1)


def test_images_of_another_prompt_with_the_same_id_are_refused(tmp_path: Path) -> None:
    def generate(
        prompts: Sequence[BenchmarkPrompt], use_layouts: bool = False, out: Path = tmp_path
    ) -> list[tuple[str, int]]:
        generator = SignGenerator()
        list(generate_images(generator, prompts, 1, 0, use_layouts, out))
        return generator.generated

    assert len(generate(PROMPTS[:2])) == 2
    assert len(generate(PROMPTS[:3])) == 1, "a longer prompt file continues"
    edited = [replace(PROMPTS[0], text="a sign that says 'OTHER'"), *PROMPTS[1:]]
    with pytest.raises(
        UserError, match=r"generated from another prompt \(of the id '0', now \"a sign that says 'OTHER'\"\)"
    ):
        generate(edited)
    (tmp_path / "images" / "0_0.png").unlink()
    assert [key for key, _ in generate(edited[:3])] == ["0"], "removed images are generated again"
    # Layouts count where they are given, and nowhere else.
    moved = [replace(PROMPTS[1], lines=PROMPTS[2].lines)]
    assert generate(moved) == []
    generate(PROMPTS[1:2], True, tmp_path / "given")
    with pytest.raises(UserError, match="generated from another prompt"):
        generate(moved, True, tmp_path / "given")


def test_prompts_without_target_text_are_scored_where_that_is_defined(tmp_path: Path) -> None:
    prompts = [BenchmarkPrompt("0", "a cat", ()), BenchmarkPrompt("1", "a dog", ())]
    (tmp_path / "made").mkdir()
    for prompt in prompts:
        Image.new("RGB", (32, 32)).save(tmp_path / "made" / f"{prompt.key}.png")
    protocols, _ = choose_protocols("all", prompts, follows_polygons=False)
    found = evaluate(find_images(tmp_path / "made", prompts, None), protocols, ONE, tmp_path)
    # The published scorer counts a blank image as right here: which is no score.
    assert found.metrics["mario"] == {"strict": {}, "corrected": {}}
    assert "would count an image without text as right" in found.left_out["mario, strict"]
    write_report(tmp_path / "report.html", found, "x", [])
    assert "mario         recall" in text_table(found)


def test_one_prompt_with_target_text_is_enough_for_strict_metrics(tmp_path: Path) -> None:
    prompts = [BenchmarkPrompt("0", "a cat", ()), BenchmarkPrompt("1", "a sign 'A'", ("A",), subset="other")]
    (tmp_path / "made").mkdir()
    for prompt in prompts:
        Image.new("RGB", (32, 32)).save(tmp_path / "made" / f"{prompt.key}.png")
    protocols, _ = choose_protocols("mario", prompts, follows_polygons=False)
    found = evaluate(find_images(tmp_path / "made", prompts, None), protocols, ONE, tmp_path)
    assert found.metrics["mario"]["strict"]["accuracy"][0] == 0.5 and "mario, strict" not in found.left_out
    assert found.subsets["mario"]["other"]["strict"]["accuracy"] == 0


@pytest.mark.parametrize("damaged", ["", '{"pipe', "[]", "null"])
@pytest.mark.parametrize("name", ["settings.json", "drawn_of.json"])
def test_damaged_records_of_generation_are_refused(name: str, damaged: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(damaged, encoding="utf-8")
    with pytest.raises(UserError, match=rf"{name} is damaged .* remove"):
        check_generation(SignGenerator(), [BenchmarkPrompt("0", "a cat", ())], 0, False, tmp_path)


def test_prompts_that_cannot_be_generated_are_missing_with_the_reason(tmp_path: Path) -> None:
    prompts = [PROMPTS[0], BenchmarkPrompt("x", "long " * 50, ("long",)), PROMPTS[1]]
    images = generate_images(SignGenerator(), prompts, 1, 0, False, tmp_path)
    found = evaluate(images, [PROTOCOLS["mario"]], ONE, tmp_path)
    assert found.missing == ["x_0: too long"]
    assert (found.prompts, found.images) == (2, 3)


def test_images_are_found_by_name_by_index_and_in_subsets_folders(tmp_path: Path) -> None:
    def touch(*names: str) -> Path:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        return tmp_path

    def names(
        folder: Path, prompts: Sequence[BenchmarkPrompt], per_prompt: int | None = None
    ) -> list[tuple[str, str | None]]:
        found = find_images(folder, prompts, per_prompt)
        return [(p.name, None if p.path is None else str(p.path.relative_to(folder))) for p in found]

    a, b = BenchmarkPrompt("cat_1", "a cat", ()), BenchmarkPrompt("b", "a dog", ())
    touch("cat_1.png", "b_1.jpg", "b_2.png", "other.png", "b_2.txt")
    # A prompt that has fewer than another has holes, unless fewer are asked for.
    own = [("cat_1_0", "cat_1.png"), ("cat_1_1", None), ("b_1", "b_1.jpg"), ("b_2", "b_2.png")]
    assert names(tmp_path, [a, b]) == names(tmp_path, [a, b], 2) == own
    assert names(tmp_path, [a, b], 1) == [own[0], own[2]]
    assert names(tmp_path, [a, b, BenchmarkPrompt("c", "", ())])[-2:] == [("c_0", None), ("c_1", None)]
    assert names(tmp_path, [b], 1) == [("b_1", "b_1.jpg")]

    (tmp_path / "index.jsonl").write_text(
        '{"file": "other.png", "prompt": "a dog"}\n{"file": "b_1.jpg", "prompt": "a dog"}\n'
        '{"file": "cat_1.png", "id": "cat_1", "sample": 5}\n',
        encoding="utf-8",
    )
    assert names(tmp_path, [a, b], 2)[::2] == [("cat_1_5", "cat_1.png"), ("b_0", "other.png")]
    # Two ids of one prompt share its images.
    twins = [b, BenchmarkPrompt("b2", "a dog", ())]
    assert names(tmp_path, twins) == [("b_0", "other.png"), ("b2_0", "b_1.jpg")]
    lines = [{"image": f"{name}.jpg", "prompt": "a dog", "seed": seed} for name, seed in (("b_1", 3), ("b_2", 4))]
    (tmp_path / "index.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert names(tmp_path, [b]) == [("b_0", "b_1.jpg"), ("b_1", "b_2.jpg")], "as sample.py writes it"
    (tmp_path / "index.jsonl").write_text('{"file": 3, "prompt": "a dog"}', encoding="utf-8")
    with pytest.raises(UserError, match=r"index.jsonl, line 1 is not"):
        find_images(tmp_path, [b], None)
    (tmp_path / "index.jsonl").unlink()
    with pytest.raises(UserError, match=r"name them zzz.png or zzz_0.png"):
        find_images(tmp_path, [BenchmarkPrompt("zzz", "", ())], None)

    mario = [BenchmarkPrompt("TMDB-0", "", (), subset="TMDB"), BenchmarkPrompt("Draw-0", "", (), subset="Draw")]
    touch("TMDB/images_0/0_0.jpg", "Draw/images_1/0_1.jpg")
    assert names(tmp_path, mario) == [("TMDB-0_0", "TMDB/images_0/0_0.jpg"), ("Draw-0_1", "Draw/images_1/0_1.jpg")]
    cvtg = [BenchmarkPrompt(f"{name}-2-7", "", (), subset=f"{name}-2") for name in ("CVTG", "CVTG-Style")]
    touch("made/CVTG/2/7.png", "made/CVTG-Style/2/7.png")
    assert names(tmp_path / "made", cvtg) == [
        ("CVTG-2-7_0", "CVTG/2/7.png"),
        ("CVTG-Style-2-7_0", "CVTG-Style/2/7.png"),
    ]
    touch("sampled/0000-a-cat.png", "sampled/0001-a-dog.png")
    assert names(tmp_path / "sampled", [a, b]) == [("cat_1_0", "0000-a-cat.png"), ("b_0", "0001-a-dog.png")]


def test_protocols_are_chosen_by_what_the_prompts_have() -> None:
    bare = [BenchmarkPrompt("0", "a cat 'A'", ("A",))]
    with pytest.raises(UserError, match="anytext reads each line in its polygon, and the prompt file has none"):
        choose_protocols("anytext", bare, True)
    with pytest.raises(UserError, match=r"in its polygon, and 1 of 7 prompts have none, 'x' first"):
        choose_protocols("anytext", [*PROMPTS, replace(bare[0], key="x")], True)
    protocols, left_out = choose_protocols("all", bare, True)
    assert [protocol.name for protocol in protocols] == ["mario", "cvtg", "longtext", "glyphcontrol", "textatlas"]
    assert left_out["anytext"].startswith("AnyText benchmark reads each line in its polygon")
    with pytest.raises(UserError, match="add --use-layouts"):
        choose_protocols("anytext", PROMPTS, False)
    with pytest.raises(UserError, match="put them in quotation marks"):
        choose_protocols("cvtg", [BenchmarkPrompt("0", "a cat", ())], True)


def test_transparent_images_are_seen_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert (load_image(tmp_path / "a.png") == 255).all()


def test_small_images_are_enlarged_to_256_pixels() -> None:
    assert [
        default_enlarge_factor(64, 64),
        default_enlarge_factor(512, 300),
        default_enlarge_factor(100, 1000),
        default_enlarge_factor(255, 256),
    ] == [4, 1, 3, 2]


def test_a_crop_is_the_polygon_s_own_pixels() -> None:
    image = np.zeros((40, 80, 3), dtype=np.uint8)
    image[10:20, 20:60] = np.arange(40, dtype=np.uint8)[None, :, None]
    crop = crop_line(image, box_polygon(0.25, 0.25, 0.75, 0.5))
    assert (crop == image[10:20, 20:60]).all()
    # Text that runs down is turned.
    assert (crop_line(image, box_polygon(0.25, 0.25, 0.375, 0.75)) == np.rot90(image[10:30, 20:30])).all()
    # An image turned by 90 degrees: the crop of the turned polygon is what it was.
    turned = np.rot90(image, -1)
    corners = ((0.75, 0.25), (0.75, 0.75), (0.5, 0.75), (0.5, 0.25))
    assert (crop_line(turned, corners) == image[10:20, 20:60]).all()
    assert crop_line(image, box_polygon(0.5, 0.5, 0.5, 0.9)) is None


def test_no_image_ends_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (32, 9000), "red").save(tmp_path / "strip.png")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "sound.png")

    class Failing:
        name, version = "failing", "1"

        def read(self, image: np.ndarray) -> Any:
            raise MemoryError("an engine's own trouble")

    monkeypatch.setattr(parallel_ocr, "build_ocr_engine", lambda name: Failing())
    monkeypatch.setattr(parallel_ocr, "_ocr_settings", lambda engine, options: {})
    files = [ImageFile(tmp_path / name, tmp_path / f"{name}.json") for name in ("strip.png", "sound.png")]
    worker = parallel_ocr._Worker(Failing(), OCROptions(workers=1))  # type: ignore[arg-type]
    strip, sound = (worker.read(file) for file in files)
    assert strip.fault == "32 x 9000: one side is over 100 times the other"
    assert sound.fault == "the OCR engine fails on it (MemoryError: an engine's own trouble)"
