"""Scores the rows of Table I: python tools/table1.py --prompts FILE ... vlad.path=RUN. The same as `vlad table1`."""

from vlad.cli.evaluate import TABLE1

if __name__ == "__main__":
    TABLE1.run_script()
