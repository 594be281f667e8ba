"""Renders posters: python tools/make_posters.py data/posters. The same as `vlad make-posters`."""

from vlad.cli.examples import MAKE_POSTERS

if __name__ == "__main__":
    MAKE_POSTERS.run_script()
