"""The lines that the agent forwards: one JSON object each, finite numbers only."""

import json
import math
from pathlib import Path


class Metrics:
    """Appends to metrics.jsonl; each line is written whole, at once."""

    def __init__(self, path: Path, total_steps: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._total = total_steps

    def write(self, step: int, **values: float) -> None:
        """One line for `step`; what is not finite is left out."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        line = {"step": step, "total_steps": self._total, **finite}
        self._file.write(json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        self._file.close()
