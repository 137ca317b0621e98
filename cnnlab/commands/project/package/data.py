"""The data: any torch Dataset with a length, whose samples are (image, class)."""

import numpy as np
from torch.utils.data import Dataset

from cnnlab.bounds import PositiveInt, Seed


class Stripes(Dataset):
    """Stripes in noise, whose direction is the class: a stand-in until there are pictures.

    Args:
        count: Images.
        seed: What they are drawn from.
    """

    classes = ("level", "upright", "rising", "falling")

    def __init__(self, count: PositiveInt = 600, seed: Seed = 0) -> None:
        self.count = count
        self.seed = seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        random = np.random.default_rng((self.seed, index))
        target = index % len(self.classes)
        row, column = np.indices((32, 32))
        place = (row, column, row + column, row - column)[target] + random.integers(0, 8)
        image = random.integers(0, 150, (32, 32, 3)) + 100 * (place % 8 < 4)[..., None]
        return image.astype(np.uint8), target
