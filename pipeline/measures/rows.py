"""What is measured per image or pair: one row each, in float64."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rows = dict[str, Array]
"""Name -> (n, ...): one value, or one small array, per image or pair."""
