"""Bad input is one clear error that names the argument, what was given and what is needed."""

import math

import numpy as np
import pytest
from scipy import sparse

import hyperattention_ref as hr
from hyperattention_ref import BlockMask, Plan

G = np.random.default_rng(0)
Q, K, V = G.standard_normal((6, 4)), G.standard_normal((6, 4)), G.standard_normal((6, 3))
X, PLANES = G.standard_normal((6, 6)), G.standard_normal((5, 4))
APPROX = {"kappa": 2.0, "epsilon": 0.5, "m": 3, "rng": 0}

# Every public function that takes arrays, as a call on good arguments that keyword arguments overrule.


def call(function, positional, **fixed):
    """`run(name=x)` calls the function on its good arguments with some replaced."""

    def run(**changes):
        unknown = {name: x for name, x in changes.items() if name not in positional}
        arguments = {**positional, **{name: x for name, x in changes.items() if name in positional}}
        return function(*arguments.values(), **(fixed | unknown))

    run.arguments = set(positional)
    return run


ONE_HEAD = {
    "sort_lsh": call(hr.sort_lsh, {"query": Q, "key": K, "block_size": 2}),
    "approx_d": call(hr.approx_d, {"query": Q, "key": K, "mask": None}, **APPROX),
    "literal_hyper_attention": call(
        hr.literal_hyper_attention, {"query": Q, "key": K, "value": V, "mask": None}, **APPROX
    ),
    "causal_approx_d": call(hr.causal_approx_d, {"query": Q, "key": K}, **APPROX, min_seq_len=2),
    "causal_literal_hyper_attention": call(
        hr.causal_literal_hyper_attention, {"query": Q, "key": K, "value": V}, **APPROX, min_seq_len=2
    ),
    "row_norm_sample": call(hr.row_norm_sample, {"value": V, "m": 3}),
}
HEADS = {
    "exact_attention": call(hr.exact_attention, {"query": Q, "key": K, "value": V}),
    "hyper_attention": call(hr.hyper_attention, {"query": Q, "key": K, "value": V}, rng=0),
    "attention_gradient": call(
        hr.attention_gradient, {"query": Q, "key": K, "value": V, "dout": Q[:, :3]}, backend="numpy"
    ),
    "make_plan": call(hr.make_plan, {"query": Q, "key": K}, rng=0),
    "hardness": call(hr.hardness, {"query": Q, "key": K}, rng=0),
    "attention_probabilities": call(hr.attention_probabilities, {"query": Q, "key": K}),
    "spectral_error": call(hr.spectral_error, {"query": Q, "key": K, "value": V, "estimate": Q[:, :3]}),
}
EVERY = ONE_HEAD | HEADS


def cases(functions, arguments):
    """(function, argument) for all functions that take the argument."""
    return [(name, argument) for name in functions for argument in arguments if argument in functions[name].arguments]


def refused(run, error, *parts, **changes):
    """The call raises exactly this error and its message holds every part."""
    with pytest.raises(error) as caught:
        run(**changes)
    assert caught.type is error
    message = str(caught.value)
    for part in parts:
        assert part in message, message
    return message


def replaced(x, entry):
    x = x.copy()
    x[1, 2] = entry
    return x


GOOD = {"query": Q, "key": K, "value": V}
ARRAYS = ("query", "key", "value")


# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("function", "argument"), cases(EVERY, ARRAYS))
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.complex128, bool, object, "U3"])
def test_a_dtype_that_is_not_floating(function, argument, dtype):
    wrong = GOOD[argument].astype(dtype)
    refused(
        EVERY[function],
        TypeError,
        f"{argument} has dtype {wrong.dtype}; it must be float16, float32 or float64",
        ".astype(",
        **{argument: wrong},
    )


@pytest.mark.parametrize(("function", "argument"), cases(EVERY, ARRAYS))
@pytest.mark.parametrize("entry", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite(function, argument, entry):
    wrong = replaced(GOOD[argument], entry)
    refused(EVERY[function], ValueError, f"{argument} has non-finite entries; all must be finite", **{argument: wrong})


@pytest.mark.parametrize(("function", "argument"), cases(EVERY, ARRAYS))
@pytest.mark.parametrize("mask", [False, True, np.ma.nomask])
def test_a_masked_array(function, argument, mask):
    wrong = np.ma.array(GOOD[argument], mask=mask)
    parts = (f"{argument} is a masked array, whose mask would be lost", "pass the rows that count")
    refused(EVERY[function], TypeError, *parts, **{argument: wrong})


@pytest.mark.parametrize(("function", "argument"), cases(EVERY, ARRAYS))
@pytest.mark.parametrize("shape", [(0, 4), (6, 0), (0, 0)])
def test_an_empty_sequence_or_dimension(function, argument, shape):
    refused(EVERY[function], ValueError, f"{argument} has shape {shape}; it must be", **{argument: np.zeros(shape)})


@pytest.mark.parametrize(("function", "argument"), cases(EVERY, ARRAYS))
@pytest.mark.parametrize("wrong", [np.float64(1), np.ones(4)])
def test_a_rank_that_is_too_low(function, argument, wrong):
    refused(EVERY[function], ValueError, f"{argument} has shape {wrong.shape}; it must be", **{argument: wrong})


@pytest.mark.parametrize(("function", "argument"), cases(ONE_HEAD, ARRAYS))
def test_literal_functions_take_one_head(function, argument):
    shape = (2, *GOOD[argument].shape)
    refused(
        ONE_HEAD[function],
        ValueError,
        f"{argument} has shape {shape}; it must be one head (n, d)",
        **{argument: np.ones(shape)},
    )


@pytest.mark.parametrize(("function", "argument"), cases(EVERY, ARRAYS))
@pytest.mark.parametrize("wrong", [None, "abc"])
def test_what_is_no_array(function, argument, wrong):
    with pytest.raises((TypeError, ValueError), match=argument):
        EVERY[function](**{argument: wrong})


@pytest.mark.parametrize("function", [name for name in EVERY if "query" in EVERY[name].arguments])
def test_query_and_key_of_different_d(function):
    parts = ("query has d = 4", "key has d = 3; they must be equal")
    refused(EVERY[function], ValueError, *parts, key=K[:, :3])


@pytest.mark.parametrize("function", [name for name in EVERY if {"key", "value"} <= EVERY[name].arguments])
def test_key_and_value_of_different_length(function):
    refused(EVERY[function], ValueError, "value has 5 rows and key has 6; they must be equal", value=V[:5])


@pytest.mark.parametrize("function", HEADS)
def test_heads_that_do_not_match(function):
    run = HEADS[function]
    parts = ("query has leading shape (2,)", "key has (3,)", "must be equal")
    message = refused(run, ValueError, *parts, query=np.stack([Q, Q]), key=np.stack([K, K, K]))
    if function in ("exact_attention", "hyper_attention", "make_plan"):
        assert "pass enable_gqa=True" in message
    if "value" in run.arguments:
        value = np.stack([V, V, V])
        both = {"query": np.stack([Q, Q]), "key": np.stack([K, K])}
        refused(run, ValueError, "query has leading shape (2,)", "value has (3,)", **both, value=value)


@pytest.mark.parametrize("function", HEADS)
def test_dtypes_that_differ(function):
    refused(
        HEADS[function], TypeError, "query float64", "key float32", "all must be the same", key=K.astype(np.float32)
    )


@pytest.mark.parametrize("function", ["exact_attention", "hyper_attention", "make_plan"])
@pytest.mark.parametrize(("query_heads", "key_heads"), [(3, 2), (2, 4), (None, 2), (2, None)])
def test_grouped_query_heads_that_do_not_divide(function, query_heads, key_heads):
    def heads(x, count):
        return x if count is None else np.stack([x] * count)

    changes = {"query": heads(Q, query_heads), "key": heads(K, key_heads)}
    if "value" in HEADS[function].arguments:
        changes["value"] = heads(V, key_heads)
    parts = (f"enable_gqa with {query_heads or 0} query heads", "multiple of the key heads")
    refused(HEADS[function], ValueError, *parts, **changes, enable_gqa=True)


@pytest.mark.parametrize("function", [x for x in EVERY if x not in ("sort_lsh", "make_plan", "row_norm_sample")])
def test_logits_that_may_overflow(function):
    parts = ("logits may overflow float64", "max|query| = ", "rescale query and key")
    refused(EVERY[function], ValueError, *parts, query=Q * 1e200, key=K * 1e200)


@pytest.mark.parametrize("function", ["exact_attention", "hyper_attention"])
def test_narrow_logits_and_values_that_may_overflow(function):
    q, k, v = (x.astype(np.float32) for x in (Q, K, V))
    run = HEADS[function]
    refused(run, ValueError, "logits may overflow float32", "float64", query=q * 1e30, key=k * 1e30, value=v)
    refused(run, ValueError, "sums of values may overflow float32", "rescale value", query=q, key=k, value=v * 1e38)


@pytest.mark.parametrize("function", ["exact_attention", "hyper_attention"])
def test_a_scale_that_the_working_type_cannot_hold(function):
    q, k, v = (x.astype(np.float32) for x in (0 * Q, K, V))
    refused(HEADS[function], ValueError, "logits may overflow float32", "1e+300", query=q, key=k, value=v, scale=1e300)


# --- causal ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [name for name in EVERY if name.startswith("causal")])
def test_causal_functions_need_equal_lengths(function):
    changes = {"key": K[:5]} | ({"value": V[:5]} if "value" in EVERY[function].arguments else {})
    refused(EVERY[function], ValueError, "is_causal with 6 queries and 5 keys", "n_q == n_k", **changes)


@pytest.mark.parametrize("function", HEADS)
def test_is_causal_needs_equal_lengths(function):
    changes = {"key": K[:5]} | ({"value": V[:5]} if "value" in HEADS[function].arguments else {})
    refused(HEADS[function], ValueError, "is_causal with 6 queries and 5 keys", "n_q == n_k", **changes, is_causal=True)


# --- numbers --------------------------------------------------------------------------------------

CAUSAL = ["causal_approx_d", "causal_literal_hyper_attention"]
ESTIMATORS = ["approx_d", "literal_hyper_attention", *CAUSAL]
COUNTS = {
    "m": [*ESTIMATORS, "row_norm_sample"],
    "pilot_size": ["approx_d"],
    "block_size": ["sort_lsh", *CAUSAL, "make_plan", "hyper_attention"],
    "lsh_bits": ["sort_lsh", *CAUSAL, "make_plan", "hyper_attention"],
    "min_seq_len": [*CAUSAL, "make_plan", "hyper_attention"],
    "sample_size": ["make_plan", "hyper_attention"],
}
COUNTING = [(name, argument) for argument, names in COUNTS.items() for name in names]


@pytest.mark.parametrize(("function", "argument"), COUNTING)
@pytest.mark.parametrize("wrong", [0, -1, -(10**9)])
def test_a_count_below_1(function, argument, wrong):
    refused(EVERY[function], ValueError, f"{argument} is {wrong}; it must be ", "1", **{argument: wrong})


@pytest.mark.parametrize(("function", "argument"), COUNTING)
@pytest.mark.parametrize("wrong", [2.0, "2", True, math.nan, [2]])
def test_a_count_that_is_no_integer(function, argument, wrong):
    refused(EVERY[function], TypeError, f"{argument} is {wrong!r}; it must be an integer", **{argument: wrong})


@pytest.mark.parametrize(("function", "argument"), [case for case in COUNTING if case[1] == "lsh_bits"])
def test_more_bits_than_fit(function, argument):
    refused(EVERY[function], ValueError, "lsh_bits is 63; it must be between 1 and 62", lsh_bits=63)


REALS = {
    "kappa": ([0.0, 0.999, -3, math.nan, math.inf], ["2", None, 1j, True, [2.0]]),
    "epsilon": ([0.0, -0.5, math.nan, math.inf], ["0.5", None, 1j, True]),
    "alpha": ([0.0, -1.0, math.nan, math.inf], ["1", 1j, True]),
    "cap_constant": ([0.0, -1.0, math.nan, -math.inf], ["1", None, 1j, True]),
    "scale": ([math.nan, math.inf, -math.inf], ["1", None, 1j, True]),
}
NEEDED = {
    "kappa": "must be at least 1.0",
    "epsilon": "must be positive",
    "alpha": "must be positive",
    "cap_constant": "must be positive",
    "scale": "must be finite",
}


@pytest.mark.parametrize("function", ESTIMATORS)
@pytest.mark.parametrize(("argument", "wrong"), [(name, x) for name, (values, _) in REALS.items() for x in values])
def test_a_number_out_of_range(function, argument, wrong):
    message = refused(EVERY[function], ValueError, f"{argument} is {float(wrong)}; it must be", **{argument: wrong})
    assert NEEDED[argument] in message or "must be finite" in message


@pytest.mark.parametrize("function", ESTIMATORS)
@pytest.mark.parametrize(("argument", "wrong"), [(name, x) for name, (_, kinds) in REALS.items() for x in kinds])
def test_a_number_of_the_wrong_kind(function, argument, wrong):
    refused(EVERY[function], TypeError, f"{argument} is {wrong!r}; it must be a real number", **{argument: wrong})


@pytest.mark.parametrize("function", ["causal_approx_d", "causal_literal_hyper_attention"])
@pytest.mark.parametrize("wrong", [{"kappa": 0.5}, {"epsilon": 0.0}, {"m": 0}, {"alpha": -1.0}, {"cap_constant": 0.0}])
def test_arguments_are_checked_even_where_everything_is_exact(function, wrong):
    ((argument, _),) = wrong.items()
    refused(EVERY[function], ValueError, f"{argument} is ", min_seq_len=6, **wrong)


@pytest.mark.parametrize("function", HEADS)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, "1", 1j, [1.0], True])
def test_a_scale_that_is_no_finite_number(function, wrong):
    error, need = (ValueError, "must be finite") if isinstance(wrong, float) else (TypeError, "must be a real number")
    refused(HEADS[function], error, f"scale is {wrong!r}; it {need}", scale=wrong)


UNSEEDED = ("exact_attention", "attention_gradient", "attention_probabilities", "spectral_error")
SEEDED = [name for name in EVERY if name not in UNSEEDED]


# --- True and False -------------------------------------------------------------------------------

BOOLEANS = {
    "is_causal": HEADS,
    "enable_gqa": ["exact_attention", "hyper_attention", "make_plan"],
    "return_lse": ["exact_attention", "hyper_attention"],
    "rescale_rows": ["approx_d", "literal_hyper_attention", "causal_approx_d", "causal_literal_hyper_attention"],
    "op_norm": ["hardness"],
}


@pytest.mark.parametrize(("function", "argument"), [(name, x) for x, names in BOOLEANS.items() for name in names])
@pytest.mark.parametrize("wrong", ["False", "no", "0", "", 0, 1, 2, 0.5, math.nan, None, [False], np.array([True])])
def test_what_is_neither_true_nor_false(function, argument, wrong):
    refused(EVERY[function], TypeError, f"{argument} is {wrong!r}; it must be True or False", **{argument: wrong})


@pytest.mark.parametrize(("function", "argument"), [(name, x) for x, names in BOOLEANS.items() for name in names])
def test_true_and_false_of_numpy_are_fine(function, argument):
    EVERY[function](**{argument: np.False_})


# --- what scaled_dot_product_attention takes, and this library does not -----------------------------


@pytest.mark.parametrize("function", ["exact_attention", "hyper_attention"])
def test_arguments_of_pytorch(function):
    run = HEADS[function]
    refused(run, TypeError, "attn_mask is given", "is_causal=True", "cut the padded tokens off", attn_mask=np.ones(6))
    for wrong in (0.1, True, math.nan, "0"):
        refused(run, ValueError, f"dropout_p is {wrong!r}", "dropout is not supported: pass 0.0", dropout_p=wrong)
    assert np.array_equal(run(attn_mask=None, dropout_p=0.0), run())


@pytest.mark.parametrize("function", HEADS)
def test_a_batch_dimension_that_only_the_query_has(function):
    parts = ("query has leading shape (1, 2)", "has (2,)", "same number of dimensions: x[None]")
    pair = {name: np.stack([x, x]) for name, x in GOOD.items() if name in HEADS[function].arguments}
    refused(HEADS[function], ValueError, *parts, **(pair | {"query": pair["query"][None]}))


@pytest.mark.parametrize("function", SEEDED)
@pytest.mark.parametrize("wrong", ["seed", 1.5, -1, {}, True, np.True_, np.random.RandomState(0)])
def test_an_rng_that_is_none(function, wrong):
    refused(
        EVERY[function],
        TypeError,
        f"rng is {wrong!r}; it must be None, an integer seed or a numpy.random.Generator",
        rng=wrong,
    )


# --- masks, planes, samples -----------------------------------------------------------------------


@pytest.mark.parametrize("function", ["approx_d", "literal_hyper_attention"])
@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((5, 6), bool),
        np.zeros((6, 6, 1), bool),
        np.zeros(6, bool),
        sparse.csr_array((6, 5)),
        BlockMask.from_orders([0], [0], 1),
    ],
)
def test_a_mask_of_the_wrong_shape(function, wrong):
    refused(ONE_HEAD[function], ValueError, f"mask has shape {wrong.shape}; it must be (n_q, n_k) = (6, 6)", mask=wrong)


@pytest.mark.parametrize("function", ["approx_d", "literal_hyper_attention"])
@pytest.mark.parametrize("wrong", [np.zeros((6, 6)), np.zeros((6, 6), int), "causal", 3])
def test_a_mask_that_is_not_boolean(function, wrong):
    refused(ONE_HEAD[function], TypeError, f"mask has dtype {np.asarray(wrong).dtype}; it must be", mask=wrong)


@pytest.mark.parametrize("function", ["hamming_sorted_lsh", "sort_lsh"])
@pytest.mark.parametrize(
    ("planes", "error", "part"),
    [
        (np.ones((5, 3)), ValueError, "d = 3"),
        (np.ones(4), ValueError, "planes have shape (4,); they must be (r, d) with 1 <= r <= 62"),
        (np.ones((0, 4)), ValueError, "planes have shape (0, 4); they must be (r, d) with 1 <= r <= 62"),
        (np.ones((63, 4)), ValueError, "planes have shape (63, 4); they must be (r, d) with 1 <= r <= 62"),
        (np.ones((5, 4), int), TypeError, "planes has dtype int64; it must be float16, float32 or float64"),
        (np.full((5, 4), math.nan), ValueError, "planes has non-finite entries"),
    ],
)
def test_planes_that_are_none(function, planes, error, part):
    call_it = {
        "hamming_sorted_lsh": lambda: hr.hamming_sorted_lsh(Q, planes),
        "sort_lsh": lambda: hr.sort_lsh(Q, K, 2, planes=planes),
    }
    refused(call_it[function], error, part)


@pytest.mark.parametrize(
    ("x", "error", "part"),
    [
        (Q.astype(int), TypeError, "x has dtype int64"),
        (Q + 1j, TypeError, "x has dtype complex128"),
        (replaced(Q, math.nan), ValueError, "x has non-finite entries"),
        (Q[0], ValueError, "x has shape (4,); it must be (..., n, d) with d = 4"),
        (Q[:, :3], ValueError, "x has shape (6, 3); it must be (..., n, d) with d = 4"),
    ],
)
def test_rows_that_cannot_be_hashed(x, error, part):
    refused(lambda: hr.hamming_sorted_lsh(x, PLANES), error, part)


def test_planes_and_rng_exclude_each_other():
    refused(ONE_HEAD["sort_lsh"], ValueError, "planes and rng are both given", planes=PLANES, rng=0)


SAMPLE = hr.row_norm_sample(V, 3, 0)


@pytest.mark.parametrize(
    ("x", "v", "sample", "error", "parts"),
    [
        (X[:, :5], V, SAMPLE, ValueError, ("value has 6 rows", "5")),
        (X[:, :5], V[:5], SAMPLE, ValueError, ("sample was drawn from 6 rows and value has 5",)),
        (X.astype(int), V, SAMPLE, TypeError, ("x has dtype int64",)),
        (X[0], V, SAMPLE, ValueError, ("x has shape (6,)",)),
        (replaced(X, math.inf), V, SAMPLE, ValueError, ("x has non-finite entries",)),
        (X, V, None, TypeError, ("sample is a NoneType", "RowNormSample")),
        (X, V, SAMPLE.toarray(), TypeError, ("sample is a ndarray", "RowNormSample")),
    ],
)
def test_a_sampled_product_of_what_does_not_fit(x, v, sample, error, parts):
    refused(lambda: hr.sampled_product(x, v, sample), error, *parts)


# --- plans and backends ---------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["exact_attention", "hyper_attention", "make_plan"])
def test_an_unknown_backend(function):
    refused(HEADS[function], ValueError, "backend 'cuda-9' is unknown; known here: reference, numpy", backend="cuda-9")


@pytest.mark.parametrize("function", ["exact_attention", "hyper_attention", "make_plan"])
@pytest.mark.parametrize("wrong", [3, object, ["numpy"]])
def test_a_backend_of_the_wrong_kind(function, wrong):
    refused(HEADS[function], TypeError, f"backend is {wrong!r}; it must be None, a name or an object", backend=wrong)


PLAN = hr.make_plan(Q, K, block_size=2, sample_size=2, rng=0)


def test_a_plan_made_for_other_shapes():
    run = call(hr.hyper_attention, {"query": Q, "key": K, "value": V})
    made_for = "the plan was made for "
    refused(run, ValueError, made_for + "n_q = 6 but the call has 5", "make a plan for these", query=Q[:5], plan=PLAN)
    refused(run, ValueError, made_for + "n_k = 6 but the call has 4", key=K[:4], value=V[:4], plan=PLAN)
    heads = {"query": Q[None], "key": K[None], "value": V[None]}
    refused(run, ValueError, made_for + "heads = () but the call has (1,)", **heads, plan=PLAN)
    refused(run, ValueError, made_for + "is_causal = False but the call has True", is_causal=True, plan=PLAN)


@pytest.mark.parametrize("given", ["rng", "block_size", "sample_size", "lsh_bits", "min_seq_len", "rng, lsh_bits"])
def test_a_plan_and_what_it_decides(given):
    run = call(hr.hyper_attention, {"query": Q, "key": K, "value": V})
    changes = dict.fromkeys(given.split(", "), 7)
    refused(run, ValueError, f"plan and {given} are both given", "pass only the plan", plan=PLAN, **changes)


@pytest.mark.parametrize("wrong", ["plan.npz", PLAN.heads[0], np.arange(6), {}])
def test_a_plan_that_is_none(wrong):
    run = call(hr.hyper_attention, {"query": Q, "key": K, "value": V})
    refused(run, TypeError, "plan is a ", "it must be a Plan", plan=wrong)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_log_weights_that_overflow_the_working_type(dtype, sign):
    weight = sign * float(np.finfo(np.promote_types(dtype, np.float32)).max)
    plan = Plan.from_views([], shape=(6, 6), sampled_keys=[1, 2], log_weights=[weight, -weight])
    q, k, v = (x.astype(dtype) for x in (Q, K, V))
    run = call(hr.hyper_attention, {"query": q, "key": k, "value": v}, plan=plan)
    refused(run, ValueError, "log_weights", "overflow")


# --- measures and the merge -----------------------------------------------------------------------


def test_an_estimate_of_the_wrong_shape_or_kind():
    run = HEADS["spectral_error"]
    refused(run, ValueError, "estimate has shape (6, 4); it must be (..., n_q, d_v) = (6, 3)", estimate=Q)
    refused(run, TypeError, "estimate has dtype int64", estimate=np.zeros((6, 3), int))
    refused(run, ValueError, "estimate has non-finite entries", estimate=np.full((6, 3), math.nan))


def part(n=4, d=3, lse=0.0):
    return np.ones((n, d)), np.full(n, lse)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (part(4), part(3)),
        (part(4), part(4, 2)),
        ((np.ones((4, 3)), np.zeros(3)), part(4)),
        ((np.ones((4, 3)), np.zeros((4, 1))), part(4)),
    ],
)
def test_partial_attentions_that_do_not_fit_cannot_be_merged(first, second):
    with pytest.raises(ValueError, match=r"first|second|out|lse"):
        hr.merge_attention(first, second)


@pytest.mark.parametrize("lse", [math.nan, math.inf])
def test_a_log_sum_exp_that_is_nan_or_plus_infinity_cannot_be_merged(lse):
    with pytest.raises(ValueError, match="lse"):
        hr.merge_attention(part(), part(lse=lse))


@pytest.mark.parametrize("wrong", [None, 3, (np.ones((4, 3)),), np.ones((4, 3))])
def test_what_is_no_pair_cannot_be_merged(wrong):
    with pytest.raises((TypeError, ValueError), match="second"):
        hr.merge_attention(part(), wrong)
