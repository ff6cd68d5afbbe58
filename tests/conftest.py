"""What holds for every test."""

import torch
from hypothesis import settings

# The tests run side by side, and small tensors gain nothing from more threads.
torch.set_num_threads(1)

# The same examples in every run, and no verdict that depends on how busy the machine is.
settings.register_profile("flatmin", deadline=None, derandomize=True)
settings.load_profile("flatmin")
