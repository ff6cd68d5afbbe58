"""Weight noise for loops that cannot be edited: what is behind :func:`flatmin.attach`."""

from flatmin.optim.attachment.handle import Attachment
from flatmin.optim.attachment.micro_batches import MicroBatches
from flatmin.optim.attachment.smoother import Smoother
from flatmin.optim.attachment.trace import TraceWitness

__all__ = ["Attachment", "MicroBatches", "Smoother", "TraceWitness"]
