"""Looks over machine, config and data before a long run: python tools/doctor.py configs/tiny.yaml [key=value ...]"""

from __future__ import annotations

import argparse

from vlad.utils.command_line import run_command_line


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Looks over machine, config and data before a long run. Exit code 1 where something fails.",
        epilog="example: python tools/doctor.py configs/tiny.yaml trainer.devices=2",
    )
    parser.add_argument("config", help="a file of configs/, or a run's own config.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as train.py takes them")
    arguments = parser.parse_args()
    from vlad.config.load import load_config

    config = load_config(arguments.config, arguments.overrides)
    from vlad.profiling.doctor.checks import NAME_WIDTH, examine
    from vlad.profiling.doctor.findings import exit_code, table
    from vlad.utils.distributed import is_main_process

    findings = []
    for finding in examine(config):
        findings.append(finding)
        if is_main_process():  # at once: some of the checks take half a minute
            print(table([finding], named=NAME_WIDTH), flush=True)
    return exit_code(findings)


if __name__ == "__main__":
    run_command_line(main)
