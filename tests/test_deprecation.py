"""What goes away warns where it is written, does what it did, and cannot be forgotten."""

import subprocess
import sys
import warnings

import pytest

from flatmin import deprecation
from flatmin.deprecation import deprecated, overdue, renamed_argument
from flatmin.errors import ArgumentTypeError


@pytest.fixture(autouse=True)
def announced(monkeypatch):
    monkeypatch.setattr(deprecation, "_announced", {})


def test_a_deprecated_function_warns_at_the_callers_line_and_goes_on_working():
    @deprecated(since="0.2", removed_in="0.4", instead="new(x)")
    def old(x, *, y=1):
        """Doc."""
        return x + y

    with pytest.warns(
        FutureWarning, match=r"^old is deprecated since flatmin 0\.2 .*removed in 0\.4.*new\(x\)"
    ) as seen:
        assert old(1, y=2) == 3
    assert seen[0].filename == __file__
    assert (old.__name__, old.__doc__) == ("old", "Doc.")


def test_a_renamed_argument_is_taken_by_both_names_but_not_at_once():
    @renamed_argument("r", "rho", since="0.2", removed_in="0.4")
    def ascend(*, rho=0.5):
        return rho

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (ascend(), ascend(rho=0.1)) == (0.5, 0.1)
    with pytest.warns(FutureWarning, match=r"ascend\(r=\.\.\.\).*Write ascend\(rho=\.\.\.\)") as seen:
        assert ascend(r=0.2) == 0.2
    assert seen[0].filename == __file__
    with pytest.raises(ArgumentTypeError, match="r and rho, two names of one thing"):
        ascend(r=0.1, rho=0.1)


def test_what_was_to_be_removed_is_named_as_soon_as_its_release_comes():
    deprecated(since="0.2", removed_in="0.10", instead="b")(lambda: None)
    renamed_argument("c", "d", since="0.2", removed_in="0.4")(abs)
    assert overdue("0.3.9") == []
    assert overdue("0.4.0") == overdue("0.9") == overdue("0.4.0rc1") == ["abs(c=...)"]
    assert len(overdue("0.10.0")) == 2


def test_nothing_in_this_release_is_overdue():
    """In a process of its own, with every module imported, so that only what flatmin itself announces is counted."""
    code = (
        "import pkgutil, importlib, flatmin; from flatmin.deprecation import overdue; "
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(flatmin.__path__, 'flatmin.')"
        " if '.integrations' not in m.name]; print(overdue(flatmin.__version__))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
