"""The engine: flows ask for points, drivers displace the weights, restore them, and hand back gradients."""

from flatmin.perturb.buffers import BUFFER_POLICIES, BufferPolicy, Buffers
from flatmin.perturb.displace import Displacer, realize
from flatmin.perturb.flow import (
    FULL_BATCH,
    NOISE_SCALES,
    STAY,
    WEIGHTS,
    Displacement,
    Draw,
    Flow,
    FlowFunction,
    NoiseScale,
    Realized,
    Stay,
    Step,
    Weights,
    plan,
)
from flatmin.perturb.functional import gradient
from flatmin.perturb.hosts import Hosts, all_within
from flatmin.perturb.inplace import Evaluation
from flatmin.perturb.probe import Probe
from flatmin.perturb.randomness import RandomState
from flatmin.perturb.stacked import evaluate_stacked
from flatmin.perturb.sweeps import Snapshots

__all__ = [
    "BUFFER_POLICIES",
    "FULL_BATCH",
    "NOISE_SCALES",
    "STAY",
    "WEIGHTS",
    "BufferPolicy",
    "Buffers",
    "Displacement",
    "Displacer",
    "Draw",
    "Evaluation",
    "Flow",
    "FlowFunction",
    "Hosts",
    "NoiseScale",
    "Probe",
    "RandomState",
    "Realized",
    "Snapshots",
    "Stay",
    "Step",
    "Weights",
    "all_within",
    "evaluate_stacked",
    "gradient",
    "plan",
    "realize",
]
