"""The memory estimate is held against a real run, whatever versions are installed."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from agent.recipes import catalog
from marketplace.core.memory import needed
from marketplace.core.shapes import BaseShape
from tests import tiny_base

# The peak of a process since it became this program; rusage would count its parent's, too.
_RUN = """
import sys
from agent.recipes.__main__ import main
code = main(sys.argv[1:])
print(open("/proc/self/status").read())
sys.exit(code)
"""


def test_a_run_stays_within_its_estimate_and_uses_most_of_it(
    job: Callable[..., Path], tmp_path: Path
) -> None:
    """Rows longer than `max_length` fill every place of a batch."""
    dataset = tmp_path / "long"
    dataset.mkdir()
    row = json.dumps({"prompt": "x" * 100, "completion": "y" * 400}) + "\n"
    (dataset / "train.jsonl").write_text(row * 64)
    (dataset / "heldout.jsonl").write_text(row)
    base = tiny_base.write(tmp_path / "base")
    raw = {"steps": 3, "batch_size": 32, "max_length": 384, "precision": "fp32"}
    path = job(
        recipe="full",
        parameters=raw,
        inputs={"base": str(base), "dataset": str(dataset)},
    )
    done = subprocess.run(
        [sys.executable, "-c", _RUN, path],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", done.stdout)[0]) * 1024
    wanted = catalog.as_json(catalog.validate("full", raw))
    found = needed("full", wanted, BaseShape.from_config(tiny_base.CONFIG)).on("cpu-any")
    assert 0.6 * found < peak < found
