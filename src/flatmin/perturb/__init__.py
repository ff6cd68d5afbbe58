"""The engine: flows ask for points, drivers displace the weights, restore them, and hand back gradients."""

from flatmin.perturb.buffers import BUFFER_POLICIES, BufferPolicy, Buffers
from flatmin.perturb.displace import Displacer, realize
from flatmin.perturb.flow import STAY, Displacement, Draw, Flow, FlowFunction, Stay, Step, plan
from flatmin.perturb.functional import gradient
from flatmin.perturb.hosts import Hosts
from flatmin.perturb.inplace import Evaluation, Probe
from flatmin.perturb.randomness import RandomState

__all__ = [
    "BUFFER_POLICIES",
    "STAY",
    "BufferPolicy",
    "Buffers",
    "Displacement",
    "Displacer",
    "Draw",
    "Evaluation",
    "Flow",
    "FlowFunction",
    "Hosts",
    "Probe",
    "RandomState",
    "Stay",
    "Step",
    "gradient",
    "plan",
    "realize",
]
