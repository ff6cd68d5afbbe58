"""The journal: what was answered is recalled, what is asked anew is computed, and no number depends on it."""

import pytest
import torch

from curvature_cases import case
from flatmin.curvature import Hessian, top_eigenvalues, trace
from flatmin.curvature.counted import Counted
from flatmin.curvature.journal import Journal


class Once:
    """A symmetric matrix that counts its products and can fail in the midst of them."""

    def __init__(self, matrix, fails_after=10**9):
        self.matrix, self.shape, self.dtype, self.device = matrix, matrix.shape, matrix.dtype, matrix.device
        self.columns, self.fails_after, self.gradients = 0, fails_after, 0.0

    def __matmul__(self, block):
        if self.columns >= self.fails_after:
            raise KeyboardInterrupt
        self.columns += block.shape[1]
        self.gradients += 3.0 * block.shape[1]
        return self.matrix @ block


def matrix(d=40):
    g = torch.Generator().manual_seed(0)
    a = torch.randn(d, d, generator=g, dtype=torch.float64)
    return a @ a.T


def blocks(count=4, d=40, width=2):
    g = torch.Generator().manual_seed(1)
    return [torch.randn(d, width, generator=g, dtype=torch.float64) for _ in range(count)]


def asked(entries, operator, questions, **options):
    """What a counted operator answers while a journal over ``entries`` is open."""
    with Journal(entries, "part", **options).open() as journal:
        counted = Counted(operator)
        answers = [counted.products(q) for q in questions] + [counted.forms(q) for q in questions]
    return answers, counted, journal


def test_what_was_answered_is_not_computed_again():
    entries, first, second = {}, Once(matrix()), Once(matrix())
    before, account, _ = asked(entries, first, blocks())
    after, again, journal = asked(entries, second, blocks())
    assert first.columns == 16
    assert second.columns == 0
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert again.cost() == account.cost()  # the products and the gradients that they had cost
    assert again.cost()["gradients"] == 48.0
    assert journal.recalled == 48.0


@pytest.mark.parametrize("other", [0, 2])
def test_from_the_first_question_that_differs_all_is_computed(other):
    entries, questions = {}, blocks()
    asked(entries, Once(matrix()), questions)
    questions[other] = -questions[other]
    operator = Once(matrix())
    answers, *_ = asked(entries, operator, questions)
    assert operator.columns == 16 - 2 * other
    assert torch.allclose(answers[other], matrix() @ questions[other])
    again = Once(matrix())
    asked(entries, again, questions)  # and what was computed has taken the place of the former
    assert again.columns == 0


def test_answers_beyond_the_limit_are_computed_again():
    entries, room = {}, 40 * 2 * 8
    asked(entries, Once(matrix()), blocks(), limit=2 * room)
    operator = Once(matrix())
    answers, *_ = asked(entries, operator, blocks(), limit=2 * room)
    assert operator.columns == 12  # two of eight are recalled
    assert all(torch.allclose(a, matrix() @ q) for a, q in zip(answers, blocks()))


def test_nothing_is_kept_without_a_store_and_forgotten_when_asked():
    _, _, journal = asked(None, Once(matrix()), blocks())
    assert journal.columns == 16
    entries = {"other": 1}
    *_, journal = asked(entries, Once(matrix()), blocks())
    assert len(entries) == 9
    journal.forget()
    assert entries == {"other": 1}


class Reusing(Once):
    """Answers with the same memory every time."""

    def __matmul__(self, block):
        self.buffer = getattr(self, "buffer", torch.empty_like(block))
        return self.buffer.copy_(super().__matmul__(block))


def test_answers_are_kept_as_they_were():
    entries = {}
    asked(entries, Reusing(matrix()), blocks())
    answers, *_ = asked(entries, operator := Once(matrix()), blocks())
    assert operator.columns == 0
    for _ in range(2):  # and what is done to those that were recalled does not matter
        for answer, question in zip(answers, blocks()):
            torch.testing.assert_close(answer, matrix() @ question)
            answer.zero_()
        answers, *_ = asked(entries, operator, blocks())


@pytest.mark.parametrize("garbage", [None, 3, {}, {"kind": "products"}, {"kind": "products", "sketch": torch.ones(1)}])
def test_what_is_no_answer_is_computed_again(garbage):
    entries = {}
    asked(entries, Once(matrix()), blocks())
    entries["part/00002"] = garbage
    answers, *_ = asked(entries, operator := Once(matrix()), blocks())
    assert operator.columns == 12
    for answer, question in zip(answers, blocks()):
        torch.testing.assert_close(answer, matrix() @ question)


def test_whoever_watches_is_told_of_every_block():
    told = []
    asked({}, Once(matrix()), blocks(2), watch=told.append)
    assert told == [2, 4, 6, 8]


ESTIMATORS = {
    "hutchinson": lambda A: trace(A, num_matvecs=39, method="hutchinson", block_size=4, seed=3).value,
    "deflated": lambda A: trace(A, num_matvecs=39, method="deflated", seed=3).value,
    "xtrace": lambda A: trace(A, num_matvecs=38, method="xtrace", seed=3).value,
    "eigenvalues": lambda A: top_eigenvalues(A, 3, seed=3).values.tolist(),
}


@pytest.mark.parametrize("stop", [1, 9, 14])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_interrupted_estimate_goes_on_with_the_same_numbers(name, stop):
    estimate, whole, entries = ESTIMATORS[name], Once(matrix()), {}
    wanted = estimate(whole)
    with pytest.raises(KeyboardInterrupt), Journal(entries, "part").open():
        estimate(Once(matrix(), fails_after=stop))
    operator = Once(matrix())
    with Journal(entries, "part").open():
        assert estimate(operator) == wanted
    assert operator.columns <= whole.columns - min(stop, 4)  # the block it stopped in is asked again


def test_a_hessian_is_not_even_asked_for_its_data():
    entries = {}
    whole = []
    for _ in range(2):
        H = Hessian(*case("tanh"))
        with Journal(entries, "pairs").open():
            whole.append(top_eigenvalues(H, 2))
    assert H.gradients == 0.0
    assert whole[1].gradients == pytest.approx(whole[0].gradients)
    assert torch.equal(whole[0].vectors, whole[1].vectors)
