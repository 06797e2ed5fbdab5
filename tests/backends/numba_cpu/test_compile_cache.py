"""Compiled code is kept on disk, or in memory alone with a warning; the first compilation is announced."""

import errno
import importlib.util
import io
import logging
import os
import sys
import warnings

import pytest
from numba import njit
from numba.core.caching import IndexDataCacheFile

from hyperattention_ref.backends.numba_cpu import compile_cache
from hyperattention_ref.backends.numba_cpu.compile_cache import NOTICE, CompileCache


@pytest.fixture(autouse=True)
def nothing_was_said():
    compile_cache.announce.cache_clear()
    compile_cache.warn_once.cache_clear()


@pytest.fixture
def times(tmp_path):
    """Make a kernel, x -> factor x, as a process would that finds this factor in the source file."""

    def load(factor):
        path = tmp_path / "kernel.py"
        path.write_text(f"def times(x):\n    return x * {factor}\n")
        os.utime(path, (factor, factor))  # Numba tells versions of a file by their time and size
        spec = importlib.util.spec_from_file_location("kernel", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        dispatcher = njit(module.times)
        dispatcher._cache = CompileCache(module.times)
        return dispatcher

    return load


def full(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_code_is_compiled_once_and_announced_once(times, caplog):
    caplog.set_level(logging.INFO, "hyperattention_ref")
    first = times(2)
    assert (first(3), first(3.0)) == (6, 6)
    assert [record.getMessage() for record in caplog.records] == [NOTICE]
    compile_cache.announce.cache_clear()
    second = times(2)
    assert second(3) == 6
    assert len(caplog.records) == 1
    assert sum(second.stats.cache_misses.values()) == 0


def test_who_watches_a_terminal_reads_the_notice(times, monkeypatch, caplog):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    times(2)(3)
    assert terminal.getvalue() == f"hyperattention: {NOTICE}\n"
    assert not caplog.records


@pytest.mark.parametrize("step", ["_save_index", "_save_data"])
def test_a_full_disk_is_one_warning_that_names_the_folder(times, tmp_path, monkeypatch, step):
    monkeypatch.setattr(IndexDataCacheFile, step, full)
    kernel = times(2)
    with pytest.warns(UserWarning, match="No space left.*NUMBA_CACHE_DIR") as caught:
        assert (kernel(3), kernel(3.0)) == (6, 6)
    assert len(caught) == 1
    assert str(tmp_path / "__pycache__") in str(caught[0].message)
    assert not list((tmp_path / "__pycache__").glob("*.nbi"))


def test_older_code_is_not_read_after_a_write_that_failed(times, monkeypatch):
    """Numba writes the index first: it would name the file that holds the code of the older source."""
    assert times(2)(3) == 6
    with monkeypatch.context() as patch:
        patch.setattr(IndexDataCacheFile, "_save_data", full)
        kernel = times(5)
        with pytest.warns(UserWarning, match="No space left"):
            assert kernel(3) == 15
    assert times(5)(3) == 15


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_a_file_that_was_cut_is_written_anew(times, tmp_path, kind):
    assert times(2)(3) == 6
    (path,) = (tmp_path / "__pycache__").glob(f"*.{kind}")
    path.write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert times(2)(3) == 6
    assert times(2)(3) == 6
    healed = times(2)
    assert healed(3) == 6
    assert sum(healed.stats.cache_hits.values()) == 1


def test_no_folder_at_all_is_one_warning_and_the_kernels_run(run_python):
    script = """
        import warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import numpy as np
            from hyperattention_ref.backends.numba_cpu import kernels
        print(len(caught), caught[0].message)
        print(kernels.make_groups(np.array([0, 1]), np.array([0, 1])).tolist())
    """
    where = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator", "NUMBA_CACHE_DIR": os.devnull + "/cache"}
    warning, groups = run_python(script, **where).stdout.splitlines()
    assert warning.startswith(f"1 compiled code cannot be kept in {os.devnull}/cache (")
    assert "set NUMBA_CACHE_DIR to a folder that can be written" in warning
    assert groups == "[[0, 1, 0, 1, 1]]"


# --- everything beforehand -------------------------------------------------------------------------------------------

WARM_UP = """
    from hyperattention_ref.backends.conformance import check_backend
    from hyperattention_ref.backends.numba_cpu import kernels
    from hyperattention_ref.backends.numba_cpu.compile_cache import CompileCache
    from hyperattention_ref.backends.numba_cpu.warmup import warm_up
    made = [x for x in vars(kernels).values() if isinstance(getattr(x, "_cache", None), CompileCache)]
    steps = len(list(warm_up()))
    before = [set(x.overloads) for x in made]
    check_backend("numba", max_examples=30)
    print(steps, len(made), all(before), [x.py_func.__name__ for x, old in zip(made, before) if set(x.overloads) - old])
"""


def test_after_the_warm_up_nothing_is_compiled(run_python):
    assert run_python(WARM_UP).stdout == "16 17 True []\n"
