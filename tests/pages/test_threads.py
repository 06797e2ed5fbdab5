"""One number of threads for every library, and what they had afterwards."""

import os
import subprocess
import sys

from hyperattention_ref.pages import threads


def test_the_default_number_of_threads_is_one_that_numba_gives():
    ask = "from hyperattention_ref.pages.threads import available_cores; print(available_cores())"
    where = os.environ | {"NUMBA_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", ask], env=where, capture_output=True, text=True, timeout=300)
    assert done.stdout == "1\n", done.stderr


def test_threads_are_limited_and_given_back():
    import numba
    from threadpoolctl import threadpool_info

    def now():
        return numba.get_num_threads(), [library["num_threads"] for library in threadpool_info()]

    before = now()
    with threads.limited_threads(1):
        assert now() == (1, [1] * len(before[1]))
    assert now() == before
