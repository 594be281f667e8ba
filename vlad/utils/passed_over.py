"""The account of what a set of images holds and does not use, for importing, validating and training."""

from __future__ import annotations

from collections import Counter

from vlad.utils.foreign_text import printable_line


class PassedOver:
    """What is not used: how many, by reason, with the first names."""

    NAMED = 3

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.names: dict[str, list[str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Counts one more."""
        self.counts[reason] += 1
        named = self.names.setdefault(reason, [])
        if len(named) < self.NAMED:
            named.append(name)

    def lines(self) -> list[str]:
        """A line for each reason, the most frequent first, safe for a terminal."""
        return [
            printable_line(f"  {count} x {reason}: {', '.join(self.names[reason])}")
            + ", ..." * (count > len(self.names[reason]))
            for reason, count in self.counts.most_common()
        ]
