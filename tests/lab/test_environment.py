"""The hash of the code: of what it does, not of how it is written."""

from flatmin_lab.environment import _bare, code_digest

CODE = b'''
def double(x):
    """Twice."""
    # a comment
    return 2 * x
'''


def test_comments_docstrings_and_layout_do_not_enter():
    assert _bare(CODE) == _bare(b"def double(x): return (2*x)")


def test_what_the_code_does_enters():
    assert _bare(CODE) != _bare(CODE.replace(b"2 * x", b"3 * x"))
    assert _bare(CODE) != _bare(CODE.replace(b"double", b"twice"))
    assert _bare(b"x = 'a'") != _bare(b"x = 'b'")


def test_it_is_that_of_one_version():
    assert code_digest() == code_digest.__wrapped__()
    assert len(code_digest()) == 16
