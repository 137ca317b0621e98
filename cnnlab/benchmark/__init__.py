"""How fast a config trains on this machine, where a step's time goes, and how far that is from the limit.

What is compared runs in turn, block after block, each side in a process of its own: a machine's speed drifts, and what
one side does to its process (threads, memory, caches) must neither help nor hurt the other.
"""

from cnnlab.benchmark.report import SWITCHES, Side, report, sweep, versions

__all__ = ["SWITCHES", "Side", "report", "sweep", "versions"]
