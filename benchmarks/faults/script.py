"""The job that is disturbed: a plain script of its buyer's, which knows nothing of the market.

It fits a line by gradient descent, on rows that are a function of seed and step alone, at a step
each tenth of a second; it saves where it likes, looks there for its own last checkpoint when it
begins, and saves once more when it is asked to leave. Its loss at a step is the same however
often it was interrupted, if and only if its state was saved and restored right.
"""

PACE_S = 0.1
SAVE_EVERY_S = 2.0
TEXT = f"""\
import json, os, pathlib, signal, sys, time
import numpy as np

STEPS, SEED = int(sys.argv[1]), 7
runs = pathlib.Path("runs")
runs.mkdir(exist_ok=True)
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
weights, momentum, step = np.zeros(64), np.zeros(64), 0
truth = np.random.default_rng(SEED).standard_normal(64)
saved = sorted(runs.glob("checkpoint-*"), key=lambda one: int(one.name.split("-")[1]))
if saved:
    found = np.load(saved[-1] / "state.npz")
    weights, momentum, step = found["weights"], found["momentum"], int(found["step"])

def save():
    draft = runs / f".{{step}}"
    draft.mkdir(exist_ok=True)
    np.savez(draft / "state.npz", weights=weights, momentum=momentum, step=step)
    if not (runs / f"checkpoint-{{step}}").exists():
        draft.rename(runs / f"checkpoint-{{step}}")

due, saved_at = time.monotonic(), time.monotonic()
with open(os.environ["GRIDLOOM_METRICS"], "a", buffering=1) as metrics:
    while step < STEPS and not asked:
        step += 1
        rows = np.random.default_rng([SEED, step]).standard_normal((256, 64))
        error = rows @ (weights - truth) + 0.1
        momentum = 0.9 * momentum + rows.T @ error / 256
        weights = weights - 0.01 * momentum
        told = {{"step": step, "total_steps": STEPS, "loss": float((error ** 2).mean()), "at": time.time()}}
        metrics.write(json.dumps(told) + "\\n")
        if time.monotonic() - saved_at >= {SAVE_EVERY_S} or asked:
            save()
            saved_at = time.monotonic()
        due = max(due + {PACE_S}, time.monotonic() - 1)
        time.sleep(max(0.0, due - time.monotonic()))
if step < STEPS:
    save()
    sys.exit(75)
result = pathlib.Path(os.environ["GRIDLOOM_OUTPUT"]) / "artifact"
result.mkdir(exist_ok=True)
np.savez(result / "weights.npz", weights=weights)
"""
