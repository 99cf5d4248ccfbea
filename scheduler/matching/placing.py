"""How far apart a gang may stand, and how GPUs of one node are cut."""

from typing import Final

import numpy as np

from scheduler.matching.book import NODE_GPUS
from scheduler.matching.cells import SLOTS, slots

NODE, SITE, ANY = 0, 1, 2

LARGEST: Final = np.array([SLOTS.index(max(slots(n), default=1)) for n in range(NODE_GPUS + 1)])
"""For 0..16 GPUs of one node: which slot (0..3 for 1, 2, 4, 8) is the largest."""
