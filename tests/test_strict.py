"""Reading what strangers send takes time and memory by its length, whatever it says."""

import time
import tracemalloc
from typing import Any

import numpy as np
import pytest

from dualstudent.errors import TargetError
from dualstudent.targets.strict import numbers, read_json


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([["x", 1.0]], "no numbers"),
        ([[True, 0.5]], "no numbers"),
        ([[None]], "no numbers"),
        ([{}], "no numbers"),
        ("0.5", "no numbers"),
        ([1 << 70, 1], "no numbers"),
        ([10**400, 0.5], "no numbers"),
        ([[1.0], [1.0, 2.0]], "different lengths"),
        ([[1.0], 2.0], "different lengths"),
        ([[], [1.0]], "different lengths"),
        ([[[[[[[[[1.0]]]]]]]]], "more than 8 levels"),
    ],
)
def test_what_are_no_numbers(value: Any, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        numbers(value, "the answers")


@pytest.mark.parametrize("value", [3, 0.5, [], [[]], [1, 2], [1, 2.5], [[[0.25, 1]], [[2, 3]]], [1 << 63]])
def test_numbers_are_as_numpy_reads_them(value: Any) -> None:
    found = numbers(value, "the answers")
    assert found.dtype == np.asarray(value).dtype
    assert np.array_equal(found, np.asarray(value))


def test_a_long_word_among_numbers_takes_no_memory() -> None:
    value = ["x" * 2000, *[1] * 50_000]  # as strings of one length: 400 MB
    tracemalloc.start()
    try:
        with pytest.raises(TargetError, match="no numbers"):
            numbers(value, "the answers")
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_a_key_that_comes_twice_is_found_in_one_pass() -> None:
    body = "{" + ",".join(f'"{i:x}":0' for i in range(100_000)) + ',"zz":0,"zz":1}'
    start = time.process_time()
    with pytest.raises(TargetError, match="the key 'zz' twice"):
        read_json(body.encode(), "the answer")
    assert time.process_time() - start < 2, "seconds; one look at all names for each takes minutes"
