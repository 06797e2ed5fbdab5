"""Random numbers: what every argument `rng` may be, and independent streams that its state decides."""

from __future__ import annotations

import numpy as np

SEEDS = np.random.SeedSequence | np.random.BitGenerator | np.random.Generator | None


def generator(rng) -> np.random.Generator:
    """The Generator that an argument `rng` means, as in SciPy.

    Parameters
    ----------
    rng : None for fresh entropy, an integer seed, a SeedSequence, or a Generator or BitGenerator of any kind, which is
        used and advanced: its state decides the result.

    Raises
    ------
    TypeError : anything else, such as a bool or a RandomState, the legacy generator of NumPy.
    """
    is_integer = isinstance(rng, int | np.integer) and not isinstance(rng, bool) and rng >= 0
    if not (is_integer or isinstance(rng, SEEDS)):
        raise TypeError(
            f"rng is {rng!r}; it must be None, an integer seed or a numpy.random.Generator, such as default_rng(0)"
        )
    return np.random.default_rng(rng)


def streams(rng, count: int, *, purpose: int | None = None) -> list[np.random.Generator]:
    """`count` independent streams; the state of `rng` decides them, and is advanced.

    Derived: four words of 32 bits, drawn from `rng`, seed a SeedSequence, and every stream is a child of it. Unlike
    `Generator.spawn`, which counts its calls and ignores the state, equal states give equal streams, for any bit
    generator.

    Parameters
    ----------
    rng : as in `generator`.
    count : how many; stream h does not depend on how many follow.
    purpose : a number that sets these streams apart from those that another purpose makes from the same state.
    """
    words = generator(rng).integers(2**32, size=4, dtype=np.uint32).tolist()
    root = np.random.SeedSequence(words, spawn_key=() if purpose is None else (purpose,))
    return [np.random.default_rng(child) for child in root.spawn(count)]
