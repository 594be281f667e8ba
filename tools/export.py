"""A finished run as one folder with a model card: python tools/export.py runs/tiny --out exports/tiny"""

from __future__ import annotations

from pathlib import Path

from vlad.utils.command_line import OptionParser, run_command_line


def main() -> None:
    parser = OptionParser(description="Writes a run's pipeline with a model card and example images.")
    parser.add_argument("run", type=Path, help="a finished run directory, or a pipeline folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the folder goes")
    parser.add_argument("--variant", action="append", default=[], metavar="NAME", help="fp16 or bf16 beside float32")
    parser.add_argument("--licence", metavar="ID", help="of the weights that the run has trained, like apache-2.0")
    parser.add_argument("--example", action="append", metavar="PROMPT", help="prompts of the card, in place of ours")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to the hub too, as a private repository")
    arguments = parser.parse_args()

    from vlad.inference.export import EXAMPLES, export_run, push

    examples = arguments.example or EXAMPLES
    card = export_run(arguments.run, arguments.out, arguments.variant, arguments.licence, examples)
    print(f"The pipeline is in {arguments.out}, its model card is {card}")
    if arguments.push:
        print(f"Uploaded to {push(arguments.out, arguments.push)}")


if __name__ == "__main__":
    run_command_line(main)
