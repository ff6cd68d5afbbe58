"""Vectors over parameters form a vector space with an inner product; absent entries are zero."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flatmin.vectors import PerParameter, Vector

SIZES = {0: 3, 1: 1, 2: 4}
numbers = st.floats(-10, 10, allow_nan=False)


@st.composite
def vectors(draw):
    chosen = draw(st.sets(st.sampled_from(list(SIZES))))
    elements = {i: draw(st.lists(numbers, min_size=SIZES[i], max_size=SIZES[i])) for i in chosen}
    return Vector({i: torch.tensor(e, dtype=torch.float64) for i, e in elements.items()})


def dense(v):
    zero = {i: torch.zeros(n, dtype=torch.float64) for i, n in SIZES.items()}
    return torch.cat([v.tensors.get(i, zero[i]) for i in SIZES])


@given(vectors(), vectors(), numbers)
def test_arithmetic_is_that_of_the_dense_vectors(a, b, c):
    torch.testing.assert_close(dense(a + b), dense(a) + dense(b))
    torch.testing.assert_close(dense(a - b), dense(a) - dense(b))
    torch.testing.assert_close(dense(c * a), c * dense(a))
    torch.testing.assert_close(dense(torch.tensor(c, dtype=torch.float64) * a), c * dense(a))
    torch.testing.assert_close(a.dot(b), dense(a) @ dense(b))
    torch.testing.assert_close(a.norm(), dense(a).norm())


@given(vectors())
def test_a_unit_vector_has_length_one_and_zero_stays_zero(a):
    length = float(a.unit().norm())
    assert length == pytest.approx(0.0 if float(a.norm()) == 0 else 1.0)


@given(vectors(), st.tuples(numbers, numbers, numbers))
def test_a_scale_for_each_parameter(a, scales):
    scaled = PerParameter(scales) * a
    for i, t in a.tensors.items():
        torch.testing.assert_close(scaled.tensors[i], scales[i] * t)


def test_sums_start_at_zero_as_in_papers():
    v = Vector({0: torch.ones(3)})
    assert sum([v, v]).tensors[0].tolist() == [2.0, 2.0, 2.0]


def test_long_sums_are_taken_in_double():
    """A float32 accumulator is off by percents at 85 million terms, and stops adding at 2**24."""
    ones = Vector({0: torch.ones(2**25)})
    assert ones.dot(ones).dtype == torch.float64
    assert float(ones.dot(ones)) == 2**25


def test_sparse_meets_dense():
    sparse = torch.sparse_coo_tensor([[0, 2, 2]], [1.0, 2.0, 3.0], (4,), check_invariants=True)
    assert float(Vector({0: sparse}).dot(Vector({0: torch.tensor([1.0, 10.0, 100.0, 1000.0])}))) == 501.0
    assert math.isclose(float(Vector({0: sparse}).norm()), math.sqrt(26), rel_tol=1e-6)


@given(vectors(), vectors(), numbers, numbers)
def test_products_with_numbers_are_carried_out_once_and_change_nothing_before(a, b, c, d):
    before = dense(a)
    product = c * (torch.tensor(d, dtype=torch.float64) * a)
    torch.testing.assert_close(product.norm(), abs(c * d) * before.norm())
    torch.testing.assert_close(dense(product + b), c * d * before + dense(b))
    torch.testing.assert_close(dense(2.0 * product), 2 * c * d * before)
    assert torch.equal(dense(a), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("number", [2.0, torch.tensor(2.0, dtype=torch.float64)])
def test_adding_in_place(dtype, number):
    sparse = torch.sparse_coo_tensor([[0, 2]], [1.0, 3.0], (4,), dtype=dtype, check_invariants=True)
    for tensor in (torch.tensor([1.0, 0.0, 3.0, 0.0], dtype=dtype), sparse):
        targets = {0: torch.ones(4, dtype=dtype), 5: torch.ones(2, dtype=dtype)}
        (number * Vector({0: tensor})).add_to_(targets)
        assert targets[0].tolist() == [3.0, 1.0, 7.0, 1.0]
        assert targets[5].tolist() == [1.0, 1.0]


def test_inner_products_do_not_depend_on_how_long_the_tensors_are():
    """Long ones are gone through in pieces; with integers every sum is exact."""
    g = torch.Generator().manual_seed(0)
    for length in (1, 2**16, 2**16 + 1, 5 * 2**16 + 3):
        a, b = (torch.randint(-4, 5, (length,), generator=g).float() for _ in range(2))
        assert float(Vector({0: a}).dot(Vector({0: b}))) == float(a.double() @ b.double())
        assert float(Vector({0: a}).norm()) == pytest.approx(float(a.double().norm()), rel=1e-15)
