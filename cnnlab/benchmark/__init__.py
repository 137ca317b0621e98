"""Measure how fast a config trains on this machine, where a step's time goes, and how far that is from the limit.

What is compared trains in turn, block after block, each side in a separate process: a machine's speed drifts, and what
one side does to its process (threads, memory, caches) must neither help nor hurt the other.
"""

from cnnlab.benchmark.measurement import SWITCHES, Side, list_versions, measure, try_switches

__all__ = ["SWITCHES", "Side", "list_versions", "measure", "try_switches"]
