from dataclasses import dataclass

import numpy as np

from hyperattention_ref.foundation.results import Result
from hyperattention_ref.measures.per_head import per_head


@dataclass(frozen=True, eq=False, repr=False)
class Measured(Result):
    number: float
    row: np.ndarray
    absent: float | None = None


def measure(index):
    return Measured(float(sum(index)), np.arange(3) + sum(index))


def test_one_head_is_returned_as_it_is():
    result = measure(())
    assert per_head(lambda index: result, ()) is result


def test_fields_of_several_heads_have_the_leading_shape_in_front():
    result = per_head(measure, (2, 4))
    assert type(result) is Measured
    assert (result.number.shape, result.row.shape, result.absent) == ((2, 4), (2, 4, 3), None)
    for index in np.ndindex(2, 4):
        assert result.number[index] == sum(index)
        np.testing.assert_array_equal(result.row[index], measure(index).row)
