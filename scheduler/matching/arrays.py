"""Named arrays with a schema: checked by name, kept in `.npz` files.

The order book and the matches are each a dataclass of such arrays. A file holds exactly the
arrays of its schema, little-endian; arrays named `x_…` are somebody's notes and ignored.
"""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from marketplace.core.errors import Invalid

type Array = NDArray[Any]
