"""Routed pages: what the score means, where they are exact, how they meet landmarks, what they cost, what they see."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

import hyperattention_ref as hr
from hyperattention_ref.foundation.registry import get_backend
from hyperattention_ref.plan.pages import page_lists

from .dense import ROUNDING
from .settings import Settings
from .verdict import FAILS, Verdict

N, D, SIZE, TOP, SCALE = 96, 4, 8, 3, 0.7
PAGED = hr.Recipe(views=(), sample_size=0, first_keys=SIZE, window=2 * SIZE, pages=TOP, page_size=SIZE)
"""A quarter of the keys are near, a quarter is picked."""
derived = partial(Verdict, paper="derived", family="Gaussian queries and keys, d = 4", n=N)


def check(settings: Settings):
    trials = [_arrays(settings.rng("pages", trial)) for trial in range(settings.trials)]
    yield jensen(trials)
    yield score_of_constant_pages(settings)
    for is_causal in (False, True):
        yield all_pages(trials, is_causal)
        yield cost(trials, is_causal)
        yield key_shift(trials, is_causal)
    yield landmarks_beside(trials)
    yield nothing_later(trials)
    yield from where_they_do_not_help(settings)


def _arrays(rng: np.random.Generator):
    """Queries, keys (N, D) and values."""
    return rng.standard_normal((N, D)), 2 * rng.standard_normal((N, D)), rng.standard_normal((N, 3))


def _lists(q, k, is_causal: bool, *, lift: float = 0.8) -> hr.BlockLists:
    paging = PAGED.paging(len(q), len(k), is_causal=is_causal)
    return page_lists(q, k, paging, top=TOP, lift=lift, scale=SCALE, backend=get_backend("reference"))


def _far(is_causal: bool) -> np.ndarray:
    """(blocks, pages) boolean: the pages that each block may pick."""
    paging = PAGED.paging(N, N, is_causal=is_causal)
    return (np.arange(paging.n_pages) < paging.existing()[:, None]) & ~paging.near()


def _plan(q, k, recipe: hr.Recipe, is_causal: bool) -> hr.Plan:
    return hr.make_plan(q, k, recipe=recipe, is_causal=is_causal, min_seq_len=1, scale=SCALE, rng=0)


def _attend(arrays, plan: hr.Plan) -> np.ndarray:
    return hr.hyper_attention(*arrays, plan=plan, is_causal=plan.is_causal, scale=SCALE)


def _distance(out, expected) -> float:
    return float(np.linalg.norm(out - expected) / np.linalg.norm(expected))


def _by_block(x) -> np.ndarray:
    """(blocks, SIZE, D) of (N, D)."""
    return x.reshape(-1, SIZE, D)


def jensen(trials) -> Verdict:
    """The score's estimate of the logarithm of a page's mass, from the mean query and the mean key."""
    left, right = [], []
    for q, k, _ in trials:
        queries, keys = _by_block(q).mean(axis=1), _by_block(k)
        estimate = SCALE * queries @ keys.mean(axis=1).T + np.log(SIZE)
        mass = np.log(np.exp(SCALE * np.einsum("bd,pjd->bpj", queries, keys)).sum(axis=2))
        worst = np.unravel_index(np.argmax(estimate - mass), mass.shape)
        left.append(estimate[worst])
        right.append(mass[worst] + ROUNDING)
    return derived(
        name="pages, Jensen",
        statement="s q̄·k̄ + ln |p| ≤ ln Σ_{j ∈ p} e^{s q̄·k_j}.",
        hypothesis="q̄, k̄ means of a block and a page",
        left=left,
        right=right,
    )


def score_of_constant_pages(settings: Settings) -> Verdict:
    """Blocks of one query and pages of one key: the score without lift is the true mass."""
    left = []
    for trial in range(settings.trials):
        q, k, _ = (np.repeat(x[::SIZE], SIZE, axis=0) for x in _arrays(settings.rng("pages, constant", trial)))
        lists, mass = _lists(q, k, True, lift=0.0), np.exp(SCALE * q[::SIZE] @ k[::SIZE].T)
        for u, (row, is_far) in enumerate(zip(mass, _far(True), strict=True)):
            picked = np.intersect1d(lists.pages_of(u), np.flatnonzero(is_far))
            best = np.sort(row[is_far])[::-1][:TOP].sum()
            left.append(best - row[picked].sum())
    return derived(
        name="pages, score",
        statement="With lift 0 no far pages hold more of a block's mass than the picked; left is the difference.",
        hypothesis="equal queries in each block and equal keys in each page; causal",
        left=np.max(np.reshape(left, (settings.trials, -1)), axis=1),
        right=ROUNDING,
    )


def all_pages(trials, is_causal: bool) -> Verdict:
    """As many pages as there are."""
    left = []
    for q, k, v in trials:
        out = _attend((q, k, v), _plan(q, k, replace(PAGED, pages=N // SIZE), is_causal))
        left.append(_distance(out, hr.exact_attention(q, k, v, scale=SCALE, is_causal=is_causal)))
    return derived(
        name="pages, all",
        statement="A head whose blocks pick all pages is exact; left is the relative Frobenius error.",
        hypothesis=_kind(is_causal),
        left=left,
        right=ROUNDING,
    )


def landmarks_beside(trials) -> Verdict:
    """Listed pairs leave the landmarks' far part page by page, those of views pair by pair."""
    left = []
    for q, k, v in trials:
        (head,) = _plan(q, k, replace(PAGED, landmarks=6), False).heads
        (rectangle,) = head.rectangles
        assert head.lists is not None
        by_views = hr.HeadPlan(N, N, (replace(rectangle, views=head.lists.views()),))
        outs = [_attend((q, k, v), hr.Plan((), (one,))) for one in (head, by_views)]
        left.append(_distance(*outs))
    return derived(
        name="pages, beside landmarks",
        statement="Lists beside landmarks give what views of the same pairs give; left is the relative distance.",
        hypothesis="window, first keys, picked pages and 6 landmarks; not causal",
        left=left,
        right=ROUNDING,
    )


def cost(trials, is_causal: bool) -> Verdict:
    """Exact pairs and scores, counted one by one, beside the recipe's count."""
    left = []
    for q, k, _ in trials:
        (head,) = _plan(q, k, PAGED, is_causal).heads
        counted = head.rows(np.arange(N)).sum() + _far(is_causal).sum()
        left.append(abs(counted - N * PAGED.logits_per_query(N, N, is_causal=is_causal, min_seq_len=1)))
    return derived(
        name="pages, cost",
        statement="Marked pairs and scores of far pages are n times `Recipe.logits_per_query`; left is the difference.",
        hypothesis=f"n a multiple of the page's size; {_kind(is_causal)}",
        left=left,
        right=ROUNDING,
    )


def key_shift(trials, is_causal: bool) -> Verdict:
    """All keys moved by one vector: a constant is added to each row of scores, and no share changes."""
    left = []
    for q, k, v in trials:
        moved = (q, k + q[0], v)
        outs = [_attend(x, _plan(x[0], x[1], PAGED, is_causal)) for x in ((q, k, v), moved)]
        left.append(_distance(*outs))
    return derived(
        name="pages, key shift",
        statement="Keys moved by one vector give the same output; left is the relative Frobenius distance.",
        hypothesis=f"pages picked anew; {_kind(is_causal)}",
        left=left,
        right=ROUNDING,
    )


def nothing_later(trials) -> Verdict:
    """Other tokens behind a block change nothing up to its end, its picks included."""
    left, half = [], N // 2
    for q, k, v in trials:
        changed = [np.concatenate([x[:half], -3 * x[half:]]) for x in (q, k, v)]
        outs = [_attend(x, _plan(x[0], x[1], PAGED, True))[:half] for x in ((q, k, v), changed)]
        left.append(np.abs(outs[0] - outs[1]).max())
    return derived(
        name="pages, causal",
        statement="Outputs of whole blocks do not depend on later tokens; left is the largest difference.",
        hypothesis="causal; the tokens from n/2 on are others",
        left=left,
        right=ROUNDING,
    )


def where_they_do_not_help(settings: Settings):
    """On independent Gaussians no page is worth much more than another: 64 of 512 keys, however they are picked."""
    for problem in settings.problems(("gaussian",), n=512):
        q, k, v = problem.query, problem.key, problem.value
        out = hr.hyper_attention(q, k, v, scale=problem.scale, recipe=hr.preset("pages", 64), rng=0)
        exact = hr.exact_attention(q, k, v, scale=problem.scale)
        mean = np.broadcast_to(v.mean(axis=0), v.shape)
        yield derived(
            name="pages, a few far keys",
            statement="64 keys in pages have at most the error of the mean of V; both are relative Frobenius errors.",
            hypothesis="DROPPED: a block's mass is on few pages",
            family=problem.name,
            n=512,
            left=_distance(out, exact),
            right=_distance(mean, exact),
            expected=FAILS,
        )


def _kind(is_causal: bool) -> str:
    return "causal" if is_causal else "not causal"
