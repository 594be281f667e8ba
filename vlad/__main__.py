"""`python -m vlad`: the same as the command `vlad`."""

from vlad.cli.main import run

if __name__ == "__main__":
    run()
