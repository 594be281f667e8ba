"""Serves a page: python tools/app.py runs/tiny. The same as `vlad app`."""

from vlad.cli.sample import APP

if __name__ == "__main__":
    APP.run_script()
