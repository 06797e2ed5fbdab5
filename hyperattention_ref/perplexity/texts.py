"""The token ids that are scored: of a text as it is, or of one made from it in which something far must be found.

A window looks perfect where nothing far is needed, and aligned blocks look perfect at an aligned distance. So a stretch
is repeated at a distance that is a prime number, no multiple of any block or page; or in shuffled pieces, at every
distance.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hyperattention_ref.perplexity.settings import PerplexitySettings

PIECE = 23
"""Tokens in a shuffled piece, a prime number too."""


class Text(NamedTuple):
    """What a model reads.

    Attributes
    ----------
    ids : (n,) int64 token ids.
    first : number of the first token that is scored; every later one is, too.
    """

    ids: np.ndarray
    first: int


def made_text(ids: np.ndarray, start: int, settings: PerplexitySettings) -> Text:
    """The text of the kind that the settings ask for.

    Parameters
    ----------
    ids : token ids of the user's text, at least n.
    start : how many of them, such as a mark of the beginning, stay in front whatever is repeated.
    settings : `retrieval`, `n`, `last` and, for the order of pieces, `seed`.
    """
    n, first = settings.n, 1
    head, body = ids[:start], ids[start:]
    room = n - start
    if settings.retrieval == "repeated":
        period = _prime_up_to(room // 2)
        body, first = np.resize(body[:period], room), start + period + 1
    elif settings.retrieval == "shuffled":
        stretch = body[: -(-room // 2)]
        pieces = [stretch[a : a + PIECE] for a in range(0, len(stretch), PIECE)]
        order = np.random.default_rng(settings.seed).permutation(len(pieces))
        body, first = np.concatenate([stretch, *(pieces[i] for i in order)]), start + len(stretch) + 1
    if settings.last is not None:
        first = max(first, n - settings.last)
    return Text(np.concatenate([head, body])[:n], first)


def _prime_up_to(n: int) -> int:
    """The largest prime number up to n >= 2."""
    return next(p for p in range(n, 1, -1) if all(p % i for i in range(2, int(p**0.5) + 1)))
