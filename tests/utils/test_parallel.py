"""Parallel map: results in order, items only a few ahead, errors at their place."""

import time

import pytest

from vlad.utils.parallel import map_in_order


def slow_when_early(number):
    time.sleep(0.02 if number < 3 else 0)
    return number * number


@pytest.mark.parametrize("workers", [1, 4, None])
def test_results_come_in_order(workers):
    assert list(map_in_order(slow_when_early, range(30), workers)) == [number**2 for number in range(30)]


def test_items_are_taken_a_few_ahead_only():
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    results = map_in_order(slow_when_early, items(), workers=2)
    next(results)
    assert len(taken) <= 6
    results.close()


def test_an_error_comes_at_its_place():
    results = map_in_order(lambda number: 1 // (number - 2), range(10), workers=2)
    assert [next(results), next(results)] == [-1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)
