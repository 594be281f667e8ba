"""The whole method on the embedded default; `make demo` runs it. The same as `vlad demo`."""

from vlad.cli.examples import DEMO

if __name__ == "__main__":
    DEMO.run_script()
