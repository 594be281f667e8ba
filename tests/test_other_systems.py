"""The package without what only Linux has: imports, layouts, glyph maps, sampling, the page, locks."""

import os
import subprocess
import sys
from pathlib import Path

# The libraries come first: on Linux they rely on what Linux has. Then it is gone, and our own modules are imported.
PROGRAM = """
import os, signal, sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from pathlib import Path

import diffusers, gradio, lightning, peft, psutil, torch, transformers

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource"):
            raise ImportError(f"no module named {name}", name=name)

for name in ("fcntl", "resource"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Missing())
for name in ("posix_fadvise", "register_at_fork", "sched_getaffinity"):
    delattr(os, name)
del signal.SIGUSR1

import vlad

root = Path(vlad.__file__).parent
for path in sorted(root.rglob("*.py")):
    import_module(".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__"))

from vlad.inference.load_pipeline import load_pipeline
from vlad.layout.glyph_map import render_glyph_map
from vlad.layout.layout_files import read_layout
from vlad.utils.locks import directory_lock

run, layout = map(Path, sys.argv[1:])
assert render_glyph_map(read_layout(layout), 32, 32).any()
with directory_lock(layout.parent, "a run"):
    pipeline = load_pipeline(run)
    prompt = 'a sign that says "ON"'
    (plan,) = pipeline.plan([pipeline.check_prompt(prompt)], [0])
    image = pipeline(prompt, 0).images[0]
assert image.size == (32, 32)
print("done")
"""


def test_everything_but_training_works_without_what_linux_alone_has(pipeline_folder: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout.json"
    layout.write_text('{"lines": [{"text": "ON", "polygon": [[0.1, 0.1], [0.9, 0.1], [0.9, 0.6], [0.1, 0.6]]}]}')
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(pipeline_folder.parent), str(layout)],
        capture_output=True,
        text=True,
        env={**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"},
        check=False,
    )
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stderr
