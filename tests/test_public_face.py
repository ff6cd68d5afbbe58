"""The public face is decided, not grown: a new public name is a change of this file."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import flatmin as fm

NAMES = """
    NSO WPSGD SAM USAM ASAM RSAM BSAM RandomlySmoothed SharpnessAware Plain
    attach Attachment AutoSigma optimal_sigma find_sigma find_rho RadiusSearch
    LabelNoise TargetNoise DistancePenalty DistanceProjection
    Hessian GGN FunctionalHessian EmpiricalFisher FiniteDifferenceHessian ForwardOnlyHessian
    trace top_eigenvalues spectral_density layerwise diagonal frobenius_norm normalized_trace ggn_trace
    perturbation_gap layerwise_gap perturbation_trace measure is_flat
    TraceEstimate EigenPairs SpectralDensity LayerwiseResult DiagonalEstimate FrobeniusEstimate GGNTrace
    GapEstimate PerturbationTrace Measurement Flatness Monitor
    certify certify_draw Certificate
    Binomial Gaussian Laplace Rademacher Uniform
    bounds compat curvature flows gradient landscape problems schedules spread
    ArgumentError ArgumentTypeError ClosureError DataError FlatminError NonFiniteError ProbeError RankError
"""


def test_the_public_names():
    assert sorted(fm.__all__) == sorted(NAMES.split())
    assert all(hasattr(fm, name) for name in fm.__all__)


def test_type_checkers_and_the_interpreter_find_each_name_in_the_same_room():
    """The imports for type checkers, against what ``__getattr__`` does."""
    tree = ast.parse(Path(fm.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {alias.name: node.module for node in block.body for alias in node.names}
    assert sorted(fm.__all__) == sorted([*told, *(name for name in dir(fm) if name.endswith("Error"))])
    for name, room in told.items():
        assert getattr(fm, name) is getattr(__import__(room, fromlist=[name]), name)
    assert set(fm.__all__) <= set(dir(fm))
    with pytest.raises(AttributeError, match="module 'flatmin' has no attribute 'NOS'"):
        _ = fm.NOS


def test_importing_opens_no_room_that_is_not_asked_for():
    code = (
        "import sys, flatmin; rooms = lambda: {m for m in sys.modules if m.startswith('flatmin.')}; "
        "assert rooms() == {'flatmin.errors'}, rooms(); flatmin.NSO; "
        "assert 'flatmin.landscape' not in rooms() and flatmin.optim.NSO is flatmin.NSO"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_thing_says_what_it_is():
    for name in fm.__all__:
        assert (getattr(fm, name).__doc__ or "").strip(), name


def test_the_library_imports_torch_and_numpy_alone():
    code = (
        "import sys, torch, numpy; before = set(sys.modules); import flatmin; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names) - {'flatmin', 'torch', 'numpy'}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_importing_draws_no_random_number_and_changes_no_setting():
    code = (
        "import torch; s = torch.get_rng_state(); t = torch.get_num_threads(); d = torch.get_default_dtype(); "
        "import flatmin; assert torch.equal(s, torch.get_rng_state()); "
        "assert (t, d) == (torch.get_num_threads(), torch.get_default_dtype())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
