"""Compares adapters: python tools/compare_adapter.py BASE --adapter RUN. The same as `vlad compare-adapter`."""

from vlad.cli.studies import COMPARE_ADAPTER

if __name__ == "__main__":
    COMPARE_ADAPTER.run_script()
