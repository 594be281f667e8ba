"""Renders the signs of a config into shards: python tools/render_shards.py configs/tiny.yaml"""

from __future__ import annotations

import argparse

from vlad.utils.command_line import run_command_line


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Renders the signs that data.synthetic of a config describes into data.shards; and, where the"
        " config names data.held_out, 256 signs whose words are never trained on."
    )
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()

    from vlad.config.load import load_config
    from vlad.data.render_shards import render_shards

    render_shards(load_config(arguments.config, arguments.overrides).data)


if __name__ == "__main__":
    run_command_line(main)
