"""For scripts written against the two-call SAM class: change the import, and they run, with whole checkpoints.

>>> from flatmin.compat import SAM                    # was: from sam import SAM
"""

from flatmin.compat.batch_norm import disable_running_stats, enable_running_stats
from flatmin.compat.two_calls import SAM

__all__ = ["SAM", "disable_running_stats", "enable_running_stats"]
