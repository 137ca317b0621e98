"""What one step sees, and the seeds that decide it."""

from typing import NamedTuple

from jaxtyping import Float, Int64, UInt8
from torch import Tensor

PADDING = -1
"""Target of a sample that only fills up a process' share, and counts nowhere."""


class Batch(NamedTuple):
    """What one step sees."""

    images: UInt8[Tensor, "batch channel height width"] | Float[Tensor, "batch channel height width"]
    """uint8 from 0 to 255, or float from 0 to 1; in channels-last memory."""
    targets: Int64[Tensor, "batch"] | Float[Tensor, "batch classes"]
    """Class indices (-1: padding, to be left out), or a distribution over the classes."""
    indices: Int64[Tensor, "batch"]
    """Position of each sample in its split."""


def mix_seed(*parts: int) -> int:
    """Derive one 63-bit seed from several integers, so that near inputs give unrelated streams.

    Source: the output function of SplitMix64, Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195.
    """
    mask = 0xFFFF_FFFF_FFFF_FFFF
    state = 0
    for part in parts:
        state = (state ^ part) + 0x9E37_79B9_7F4A_7C15 & mask
        state = (state ^ state >> 30) * 0xBF58_476D_1CE4_E5B9 & mask
        state = (state ^ state >> 27) * 0x94D0_49BB_1331_11EB & mask
        state ^= state >> 31
    return state >> 1
