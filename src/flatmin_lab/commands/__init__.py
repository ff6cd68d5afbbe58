"""The commands of ``flatmin``: each is a class whose fields are its options, in a file of its own.

A new command is added to `Command` and nowhere else. What a command needs is imported where it runs, so that help
appears at once.
"""

from flatmin_lab.commands.certify import Certify
from flatmin_lab.commands.compare import Compare
from flatmin_lab.commands.doctor import Doctor
from flatmin_lab.commands.landscape import Landscape
from flatmin_lab.commands.measure import Measure
from flatmin_lab.commands.report import Report
from flatmin_lab.commands.reproduce import Reproduce
from flatmin_lab.commands.train import Train

Command = Compare | Train | Measure | Landscape | Certify | Reproduce | Report | Doctor

__all__ = ["Certify", "Command", "Compare", "Doctor", "Landscape", "Measure", "Report", "Reproduce", "Train"]
