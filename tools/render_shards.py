"""Renders signs into shards: python tools/render_shards.py configs/tiny.yaml. The same as `vlad shards render`."""

from vlad.cli.shards import RENDER

if __name__ == "__main__":
    RENDER.run_script()
