"""What frameworks keep for the whole process is forgotten after each test."""

import sys

import pytest


@pytest.fixture(autouse=True)
def accelerate_forgets():
    """Accelerate keeps for all accelerators of a process what one was told, such as the number of micro-batches."""
    yield
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()
