"""Training curves."""

from pathlib import Path

from PIL import Image

from vlad.reports.curves import draw_curves, thin_out


def test_long_curves_are_thinned_out_to_means() -> None:
    curve = [(step, float(step % 2)) for step in range(10_000)]
    short = thin_out(curve, 200)
    assert len(short) == 200
    assert {value for _, value in short} == {0.5}
    assert short[-1][0] == 9999
    assert thin_out(curve[:7], 200) == curve[:7]


def test_curves_of_several_stages_are_one_image(tmp_path: Path) -> None:
    logs = tmp_path / "layout" / "logs" / "from-step-00000000"
    logs.mkdir(parents=True)
    (logs / "metrics.csv").write_text("step,loss,diffusion\n0,2,1.5\n1,1,0.5\n")
    draw_curves({stage: tmp_path / stage for stage in ("align", "layout")}, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").width == round(2 * 4.5 * 110)
