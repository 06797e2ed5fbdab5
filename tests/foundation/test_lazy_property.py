"""A lazy property computes once, keeps the first value, and makes no other object wait."""

import pickle
import threading

import numpy as np

import hyperattention_ref as hr
from hyperattention_ref.foundation.lazy_property import lazy_property


class Slow:
    """Each value is computed only when as many threads as the barrier wants compute at the same time."""

    def __init__(self, barrier):
        self.barrier, self.calls = barrier, 0

    @lazy_property
    def value(self):
        """What it is."""
        self.calls += 1
        self.barrier.wait()
        return object()


def read_on_threads(*things):
    values = [None] * len(things)

    def read(i):
        values[i] = things[i].value

    readers = [threading.Thread(target=read, args=(i,), daemon=True) for i in range(len(things))]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return values


def test_objects_do_not_wait_for_each_other():
    barrier = threading.Barrier(4, timeout=60)
    values = read_on_threads(*(Slow(barrier) for _ in range(4)))
    assert len(set(values)) == 4
    assert None not in values


def test_threads_that_meet_at_one_object_get_one_value():
    slow = Slow(threading.Barrier(3, timeout=60))
    assert set(read_on_threads(slow, slow, slow)) == {slow.value}
    assert slow.calls == 3


def test_it_is_computed_once_and_kept():
    slow = Slow(threading.Barrier(1))
    assert slow.value is slow.value
    assert slow.calls == 1
    assert Slow.value.__doc__ == "What it is."


def test_it_works_on_a_frozen_dataclass_that_is_pickled():
    mask = hr.sort_lsh(*np.random.default_rng(0).standard_normal((2, 20, 3)), block_size=4, rng=0)
    expected = mask.toarray()
    assert np.array_equal(pickle.loads(pickle.dumps(mask)).toarray(), expected)
