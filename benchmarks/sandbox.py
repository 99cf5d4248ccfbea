"""What the sandbox costs: milliseconds to the job's process, and CPU time of training steps.

    python benchmarks/sandbox.py

Each figure stands beside a plain subprocess under our init, measured in turn with it. Goals: start
≤ 50 ms, steps ≤ 3 % dearer. "start" is from the keeper's call to the moment init has started the
job; "keeper" from the agent's `keeper.start` to the same moment, its process included.
"""

import os
import platform
import resource
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from agent import keeper
from agent import order as files
from agent.order import KeeperOrder, Limits, Rung, Status
from agent.sandbox import cgroups, outputs, workspace
from agent.sandbox.launch import launch

STARTS, ROUNDS = 30, 5
PLAIN = Rung(wall="none", limits="rlimits", disk="watchdog")
STEPS = """
import resource, torch
torch.set_num_threads(1); torch.manual_seed(0)
model = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(6)])
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(150):
    optimizer.zero_grad(); model(torch.randn(64, 512)).square().mean().backward(); optimizer.step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_utime)
"""


def rungs() -> list[Rung]:
    """The plain one, then all of this host."""
    wall = "root" if os.getuid() == 0 else "userns"
    found = [PLAIN, Rung(wall=wall, limits="rlimits", disk="watchdog")]
    try:
        found.append(Rung(wall=wall, limits=cgroups.version(), disk="watchdog"))
    except cgroups.NoCgroups as reason:
        print(f"(no control groups: {reason})")
    if workspace.own_mounts() and not workspace.why_no_image():
        found.append(Rung(wall=wall, limits=found[-1].limits, disk="image"))
    return found


def make(rung: Rung, argv: list[str]) -> Path:
    """An assignment's folder, ready to start."""
    folder = Path(tempfile.mkdtemp(prefix="gl-bench-"))
    limits = Limits(memory_bytes=2**31, disk_bytes=2**28, pids=256)
    order = KeeperOrder(argv=argv, rung=rung, limits=limits, save_ms=0, grace_ms=0)
    files.write(folder / files.ORDER, order)
    files.write_paid_through(folder, 600_000)
    return folder


def start_ms(rung: Rung) -> float:
    """From `launch` to the job's process."""
    folder = make(rung, ["true"])
    order = files.read(folder / files.ORDER, KeeperOrder)
    assert order is not None
    workspace.prepare(folder, order)
    begun = time.perf_counter()
    running = launch(folder, order)
    while not running.started_up_ms:
        select.select([running.control], [], [])
        running.listen()
    took = time.perf_counter() - begun
    running.destroy()
    for fd in (running.stdout, running.stderr, running.control):
        os.close(fd)
    outputs.clean(folder)
    return took * 1000


def whole_start_ms(rung: Rung) -> float:
    """From the agent's `keeper.start` to the job's process."""
    folder = make(rung, ["true"])
    begun = files.up_ms()
    keeper.start(folder)
    status = keeper.wait(folder, 60)
    assert isinstance(status, Status), "it never ended"
    assert status.why == "exited", status
    outputs.clean(folder)
    return status.started_up_ms - begun


def step_seconds(rung: Rung) -> float:
    """User CPU time of some training steps."""
    folder = make(rung, ["python", "-c", STEPS])
    keeper.start(folder)
    status = keeper.wait(folder, 300)
    assert status is not None, "it never ended"
    said = (folder / "stdout.log").read_text()
    assert status.exit_code == 0, (folder / "stderr.log").read_text()
    outputs.clean(folder)
    return float(said)


def main() -> None:
    """Measures the rungs in turns, so that other work on the machine hits all alike."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    cores = os.cpu_count()
    print(
        f"{platform.processor() or platform.machine()}, {cores} cores, {platform.release()}, {commit}"
    )
    tried = rungs()
    starts = {rung.name: [] for rung in tried}
    wholes = {rung.name: [] for rung in tried}
    steps = {rung.name: [] for rung in tried}
    for _ in range(STARTS):
        for rung in tried:
            starts[rung.name].append(start_ms(rung))
    for _ in range(ROUNDS):
        for rung in tried:
            wholes[rung.name].append(whole_start_ms(rung))
            steps[rung.name].append(step_seconds(rung))
    print(
        f"{'rung':34} {'start ms':>9} {'p95':>6} {'ratio':>6} {'keeper ms':>10} {'steps s':>8} {'ratio':>6}"
    )
    base_start = statistics.median(starts[PLAIN.name])
    base_step = min(steps[PLAIN.name])
    for rung in tried:
        start = statistics.median(starts[rung.name])
        p95 = sorted(starts[rung.name])[int(STARTS * 0.95)]
        step = min(steps[rung.name])
        whole = statistics.median(wholes[rung.name])
        print(
            f"{rung.name:34} {start:9.1f} {p95:6.1f} {start / base_start:6.2f} {whole:10.0f} "
            f"{step:8.2f} {step / base_step:6.3f}"
        )
    print(
        f"(peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB)"
    )


if __name__ == "__main__":
    try:
        main()
    finally:
        for left in Path(tempfile.gettempdir()).glob("gl-bench-*"):
            shutil.rmtree(left, ignore_errors=True)
