"""`check_backend`, which runs the conformance suite.

It needs Hypothesis (`pip install hypothesis`), which makes the inputs and the plans. Two gates judge
the arithmetic, both against the float64 `reference` backend on the same plan, element by element:

(A) the error stays within the bound that `error_bound` derives;
(B) the error, in units of that bound, is at most four times the worst error of the `numpy` backend on the same arrays,
    plus what roundings of random sign add up to. `numpy` and `reference` themselves are judged by (A) alone.

For an empty sum the bound is 0: a query that meets no key gives (0, -inf) exactly. Further checks: hash codes are those
of Definition 1 unless rounding may change a sign; the number of capped draws is right unless rounding may move a draw
past its cap; shapes and dtypes are right; a second call gives the same bits; the inputs are unchanged; there is no
RuntimeWarning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from hyperattention_ref.foundation.backend import BLOCK_LISTS, GRADIENTS, LANDMARKS, Backend, lacks
from hyperattention_ref.foundation.memory import Memory, memory_of
from hyperattention_ref.foundation.registry import select
from hyperattention_ref.foundation.results import Result

from ..blocked_numpy import BlockedNumpy
from ..reference import Reference
from .strategies import attention_inputs, capped_inputs, gradient_inputs, hash_inputs, sums_inputs, transposed_inputs

REFERENCE, NUMPY = Reference(), BlockedNumpy()
MULTIPLE = 4
"""Gate (B): how many times the error of the `numpy` backend is granted."""
PHASES = ("generate", "shrink")
"""What Hypothesis does: to shrink an example that fails takes longer than to find it."""


@dataclass(frozen=True, eq=False, repr=False)
class Conformance(Result):
    """What `check_backend` returns for a backend that passed.

    Attributes
    ----------
    backend : its name.
    operations : the operations checked.
    examples : how many examples were checked, all operations together.
    worst_ratio : the largest error of any result, in units of the bound of gate (A).
    """

    backend: str
    operations: tuple[str, ...]
    examples: int
    worst_ratio: float


def check_backend(
    backend,
    *,
    max_examples: int = 100,
    seed: int = 0,
    operations=None,
    progress: Callable[[str, int, int], None] = lambda operation, finished, total: None,
) -> Conformance:
    """Judge a backend on arrays and plans that Hypothesis makes.

    Parameters
    ----------
    backend : a name or an instance.
    max_examples : examples for each operation; as many again for plans with block lists and landmarks.
    seed : the same seed makes the same examples.
    operations : names of the operations to check; None for all of them that the backend has.
    progress : called after each example with the operation, how many examples are finished, and how many there are.

    Returns
    -------
    Conformance. An AssertionError reports the first violation, reduced to a small example: the operation, the arrays,
    the plan, the place, and the error against what is allowed.
    """
    backend = select(backend, None)
    ratios, every_part = list[float](), {BLOCK_LISTS, LANDMARKS}
    lacking = lacks(backend, every_part)
    checks = [  # the cheap ones first
        ("hash_codes", hash_inputs(), _check_codes),
        ("capped_sums", capped_inputs(), _check_arithmetic),
        ("exact_attention", attention_inputs(), _check_arithmetic),
        ("planned_attention", attention_inputs(planned=True, lacking=every_part), _check_arithmetic),
        ("attention_sums", sums_inputs(), _check_arithmetic),
        ("transposed_attention", transposed_inputs(), _check_arithmetic),
    ]
    if lacking < every_part:
        checks.append(("planned_attention", attention_inputs(planned=True, lacking=lacking), _check_arithmetic))
    if not lacks(backend, {GRADIENTS}):
        checks.append(("attention_gradient", gradient_inputs(lacking=lacking), _check_arithmetic))
    known = tuple(dict.fromkeys(name for name, _, _ in checks))
    names = known if operations is None else tuple(operations)
    if unknown := set(names) - set(known):
        raise ValueError(f"operations has {sorted(unknown)}; known: {', '.join(known)}")
    checks = [one for one in checks if one[0] in names]

    def judge(operation: str, check: Callable, example) -> None:
        ratios.append(check(backend, example))
        progress(operation, len(ratios), len(checks) * max_examples)

    for name, examples, check in checks:
        _for_all(examples, partial(judge, name, check), max_examples, seed)
    return Conformance(backend.name, names, len(ratios), max(ratios, default=0.0))


def _check_codes(backend: Backend, example) -> float:
    """Equal codes in the rows that are decided."""
    codes, expected = _run_twice(backend, example)["codes"], REFERENCE.hash_codes(example.x, example.planes)
    _require(backend, example, codes.shape == expected.shape, f"codes have shape {codes.shape}, not {expected.shape}")
    _require(backend, example, codes.dtype == np.int64, f"codes have dtype {codes.dtype}, not int64")
    wrong = np.argwhere(example.decided() & (codes != expected))
    if wrong.size:
        at = tuple(wrong[0].tolist())
        _require(backend, example, False, f"the code of row {at} is {codes[at]}, Definition 1 gives {expected[at]}")
    return 0.0


def _check_arithmetic(backend: Backend, example) -> float:
    """Shapes, dtypes and both gates; the largest error in units of gate (A)."""
    results = _run_twice(backend, example)
    expected = {name: np.asarray(x) for name, x in example.call(REFERENCE).items()}
    for name, x in expected.items():
        _require(backend, example, results[name].shape == x.shape, f"{name} has shape {results[name].shape}")
    _check_dtypes(backend, example, results)
    dtypes = {name: x.dtype for name, x in results.items()}
    bounds = example.bounds(expected, dtypes)
    errors = {name: _distance(x, expected[name]) for name, x in results.items()}
    _require_within(backend, example, results, expected, errors, bounds, "gate A, rounding analysis")
    if backend.name not in (NUMPY.name, REFERENCE.name):
        floors = example.bounds(expected, dtypes, random_walk=True)
        usual = {name: _worst(_distance(x, expected[name]), bounds[name]) for name, x in example.call(NUMPY).items()}
        allowed = {name: _times(MULTIPLE * usual[name], bound) + floors[name] for name, bound in bounds.items()}
        label = f"gate B, {MULTIPLE} times the error of the numpy backend"
        _require_within(backend, example, results, expected, errors, allowed, label)
    return max(_worst(error, bounds[name]) for name, error in errors.items())


def _distance(x, y) -> np.ndarray:
    """|x - y|, 0 for equal infinities."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    return np.abs(np.where(x == y, 0, x) - np.where(x == y, 0, y))


def _worst(error: np.ndarray, bound: np.ndarray) -> float:
    """The largest error in units of its bound; where the bound is 0 the error is, too."""
    return float(np.max(error / np.where(bound > 0, bound, 1), initial=0))


def _times(factor: float, bound: np.ndarray) -> np.ndarray:
    """factor x bound; infinite where the bound is, whatever the factor."""
    return np.where(np.isinf(bound), np.inf, factor * np.where(np.isinf(bound), 0, bound))


def _check_dtypes(backend: Backend, example, results) -> None:
    """`out` has the dtype of the inputs, all else the working type, or all is float64; counts are int64."""
    work, double, count = np.promote_types(example.query.dtype, np.float32), np.dtype(np.float64), np.dtype(np.int64)
    logarithms_and_gradients = ("lse", "log_sums", "dq", "dk", "dv")
    narrow = {"out": example.query.dtype, "n_capped": count} | dict.fromkeys(logarithms_and_gradients, work)
    wide = {"out": double, "n_capped": count} | dict.fromkeys(logarithms_and_gradients, double)
    found = {name: x.dtype for name, x in results.items() if name in narrow}  # sums over columns may be wider
    needed, doubled = ({name: dtypes[name] for name in found} for dtypes in (narrow, wide))
    _require(backend, example, found in (needed, doubled), f"dtypes are {found}; they must be {needed}, or {doubled}")


def _require_within(backend, example, results, expected, errors, allowed, label: str) -> None:
    for name, error in errors.items():
        wrong = np.argwhere(~(error <= allowed[name]))  # written so that NaN is wrong
        if wrong.size:
            at = tuple(wrong[0].tolist())
            message = (
                f"{name}{list(at)} is {results[name][at]:.9g}, the reference has {expected[name][at]:.9g}: the error "
                f"{error[at]:.3g} exceeds {np.asarray(allowed[name])[at]:.3g} ({label})"
            )
            _require(backend, example, False, message)


def _run_twice(backend: Backend, example) -> dict[str, np.ndarray]:
    """The results, after checking that a second call repeats them and that no input changed."""
    memory = memory_of(backend)
    copy = example.copied_to(memory)
    before = _bytes(copy, memory)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            first, second = (_on_host(copy.call(backend), memory) for _ in range(2))
    except Exception as error:
        raise AssertionError(f"backend {backend.name!r} raised {error!r} in {example!r}") from error
    for name, x in _bytes(copy, memory).items():
        _require(backend, example, x == before[name], f"{name} was modified")
    same = all(first[name].tobytes() == second[name].tobytes() for name in first)
    _require(backend, example, same, "a second call gave other bits")
    return first


def _on_host(results: dict, memory: Memory) -> dict[str, np.ndarray]:
    return {name: np.array(x if isinstance(x, float) else memory.to_host(x)) for name, x in results.items()}


def _bytes(example, memory: Memory) -> dict[str, bytes]:
    """What the arrays of an example hold, wherever they are."""
    arrays = example.arrays.items()
    return {name: (memory.to_host(x) if name in example.in_memory else x).tobytes() for name, x in arrays}


def _require(backend: Backend, example, condition, message: str) -> None:
    if not condition:
        raise AssertionError(f"backend {backend.name!r} fails {example.operation}: {message}; in {example!r}")


def _for_all(examples, check: Callable, max_examples: int, seed: int) -> None:
    """Run `check` on examples; raise the AssertionError of the smallest one that fails."""
    import hypothesis

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=max_examples,
        database=None,
        deadline=None,
        derandomize=False,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase[name] for name in PHASES],
    )
    @hypothesis.given(examples)
    def every_example_passes(example):
        check(example)

    try:
        every_example_passes()
    except hypothesis.errors.Flaky as error:
        raise AssertionError(f"an example failed once and passed when repeated: {error}") from error
