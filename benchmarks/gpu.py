"""The GPU half of the agent, on a machine that has one: inventory, proof, sandbox, training.

    python benchmarks/gpu.py            # everything; some minutes
    python benchmarks/gpu.py sweep      # these recipes only

Needs the agent's packages and a CUDA build of torch in the environment that runs it, and nothing
of the market: the proof is judged by the market's own rule, the jobs run through real keepers in
the sandbox that holds on this host. Bases are made here with random weights in the shape of known
models, since what is measured is memory and speed. Prints one JSON object a line. On a machine
without a GPU it does the same with its processor and a small shape, to try the script itself.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from agent import environment, hardware, keeper, walls
from agent import order as files
from agent.config import State
from agent.nvml import open_nvml
from agent.order import KeeperOrder, Limits
from agent.protocol import ProofChallenge, ProofCommit, ProofOpening, decode, encode
from agent.recipes import catalog
from agent.sandbox import outputs, workspace
from marketplace.core import memory
from marketplace.core.shapes import BaseShape
from suppliers import proof
from tests import tiny_base

CUDA = "h200-sxm"
# hidden, layers, heads, kv heads, inner, vocabulary: SmolLM2's and Llama 3.2's by their configs.
SHAPES = {
    "small": (128, 4, 4, 2, 344, 4096),
    "135m": (576, 30, 9, 3, 1536, 49152),
    "1b": (2048, 16, 32, 8, 8192, 128256),
}
REWARD = "def reward(prompt, completion, row):\n    return float(len(completion))\n"
# shape, recipe, further parameters
RUNS: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("135m", "sft", {"batch_size": 4, "max_length": 2048}),
    ("135m", "full", {"batch_size": 4, "max_length": 2048}),
    ("1b", "sft", {"batch_size": 4, "max_length": 2048}),
    ("1b", "sft", {"batch_size": 4, "max_length": 2048, "activations": "recompute"}),
    ("1b", "full", {"batch_size": 8, "max_length": 512}),
    ("1b", "continue", {"batch_size": 4, "max_length": 2048}),
    ("1b", "dpo", {"batch_size": 4, "max_length": 1024}),
    ("1b", "dpo", {"batch_size": 4, "max_length": 512, "weights": "full"}),
    ("1b", "reward", {"batch_size": 4, "max_length": 1024}),
    ("1b", "grpo", {"batch_size": 16, "generations": 8, "completion_length": 128}),
    ("1b", "distill", {"batch_size": 4, "max_length": 1024}),
)
TUNED: dict[str, object] = {"steps": 5, "precision": "bf16", "evaluate_samples": 4, "answers": 0}
ROWS: dict[str, object] = {"batch_size": 4, "max_length": 1024}
COMPOSED: tuple[tuple[str, str, dict[str, object]], ...] = (
    (
        "1b",
        "sweep",
        {
            "recipe": "lora",
            "parameters": {**TUNED, **ROWS},
            "space": {"rank": [8, 32], "learning_rate": [1e-4, 5e-4]},
            "trials": 4,
            "rungs": 2,
        },
    ),
    (
        "1b",
        "chain",
        {
            "stages": [
                {"recipe": name, "folder": name, "parameters": {**TUNED, **ROWS}}
                for name in ("continue", "sft", "dpo")
            ]
        },
    ),
    ("1b", "arithmetic", {"first": 0.5, "max_length": 1024, "evaluate_samples": 4, "answers": 0}),
)
"""Recipes made of others, and the one that trains nothing."""
RUN = """
import json, re, sys, torch
from agent.recipes.__main__ import main
code = main(["/job/job.json"])
if torch.cuda.is_available():
    free, total = torch.cuda.mem_get_info()
    print(json.dumps({"peak": torch.cuda.max_memory_allocated(), "used": total - free,
                      "reserved": torch.cuda.max_memory_reserved()}))
else:
    found = re.findall(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
    print(json.dumps({"peak": int(found[0]) * 1024}))
sys.exit(code)
"""


def say(what: str, **told: object) -> None:
    """One line of the result."""
    print(json.dumps({"what": what, **told}), flush=True)


def prove(scratch: Path) -> None:
    """The proof of hardware, as the agent answers it and as the market judges it."""
    driver = open_nvml()
    gpus = len(driver.cards()) if driver else 0
    task = proof.make_task(uuid.uuid4(), proof.FOR_GPU if gpus else proof.FOR_CPU)
    begun = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", "from agent.benchmark import main; main()", str(gpus), str(scratch)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(encode(task) + b"\n")
        process.stdin.flush()
        commit = decode(process.stdout.readline(), ProofCommit)
        committed = time.perf_counter()
        cells = proof.draw_cells(task)
        process.stdin.write(encode(ProofChallenge(cells=cells)) + b"\n")
        process.stdin.flush()
        opening = decode(process.stdout.readline(), ProofOpening)
    judged = time.perf_counter()
    flaw = proof.flaw(task, commit.roots, cells, opening)
    say(
        "proof",
        flaw=flaw,
        commit_s=round(committed - begun, 2),
        judge_s=round(time.perf_counter() - judged, 2),
        tflops=round(commit.tflops, 1),
        memory_gb_s=round(commit.memory_gb_s),
        disk_mb_s=round(commit.disk_mb_s),
        **commit.details,
    )


def write_base(folder: Path, shape: str) -> tuple[Path, BaseShape]:
    """A base with random bfloat16 weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, layers, heads, kv_heads, inner, vocab = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=8192,
        tie_word_embeddings=True, bos_token_id=257, eos_token_id=258, pad_token_id=256,
    )  # fmt: skip
    tiny_base.write(folder)
    (folder / "model.safetensors").unlink()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.to(torch.bfloat16).cpu().save_pretrained(folder)
    del model
    torch.cuda.empty_cache()
    for path in folder.iterdir():
        path.chmod(0o644)  # the job has a uid of its own
    return folder, BaseShape.from_config(json.loads((folder / "config.json").read_text()))


def write_rows(folder: Path, recipe: str, length: int) -> Path:
    """Rows of the recipe's kind that fill `length` tokens of the byte tokenizer."""
    folder.mkdir()
    answer = "y" * (length + 64)
    row: dict[str, str] = {
        "dpo": {"prompt": "x" * 64, "chosen": answer, "rejected": answer.replace("y", "z")},
        "reward": {"prompt": "x" * 64, "chosen": answer, "rejected": answer.replace("y", "z")},
        "grpo": {"prompt": "x" * 64},
        "continue": {"text": answer},
    }.get(recipe, {"prompt": "x" * 64, "completion": answer})
    line = json.dumps(row) + "\n"
    (folder / "train.jsonl").write_text(line * 256)
    (folder / "heldout.jsonl").write_text(line * 4)
    return folder


def write_dataset(folder: Path, recipe: str, raw: dict) -> Path:
    """Rows for a recipe, for each stage of a chain in a folder of its own."""
    if recipe == "chain":
        folder.mkdir()
        for stage in raw["stages"]:
            write_rows(folder / stage["folder"], stage["recipe"], stage["parameters"]["max_length"])
        return folder
    tuned = raw["parameters"] if recipe == "sweep" else raw
    return write_rows(folder, raw.get("method", recipe), tuned["max_length"])


def train(machine: hardware.Machine, scratch: Path, base: Path, recipe: str, raw: dict) -> dict:
    """One job through a keeper, in the sandbox, with all GPUs."""
    folder = scratch / uuid.uuid4().hex[:8]
    (folder / "job" / "output").mkdir(parents=True)
    (folder / "job" / "output").chmod(0o777)
    rows = write_dataset(folder / "rows", recipe, raw)
    inputs = {"base": str(base), "dataset": str(rows)}
    if recipe == "grpo":
        (folder / "reward").mkdir()
        (folder / "reward" / "reward.py").write_text(REWARD)
        inputs["script"] = str(folder / "reward")
    if recipe in ("distill", "arithmetic"):
        inputs["other"] = str(base)
    told = {
        "job": "gpu", "recipe": recipe, "parameters": raw, "seed": 1, "resume_from": None,
        "inputs": {name: f"/job/inputs/{name}" for name in inputs},
        "output": "/job/output", "metrics": "/job/metrics.jsonl", "checkpoint_s": 0, "lineage": {},
    }  # fmt: skip
    (folder / "job" / "job.json").write_text(json.dumps(told))
    assert machine.rung is not None
    order = KeeperOrder(
        argv=["python", "-c", RUN],
        rung=machine.rung,
        limits=Limits(
            memory_bytes=machine.inventory.memory_bytes // 2,
            disk_bytes=(24 if machine.minors else 1) * 2**30,
            cpus=list(machine.cores),
        ),
        save_ms=0,
        grace_ms=0,
        env={"CUDA_VISIBLE_DEVICES": ",".join(machine.minors)} if machine.minors else {},
        inputs=inputs,
        training_env=list(machine.training.folders),
        gpus=list(machine.minors.values()),
    )
    files.write(folder / files.ORDER, order)
    files.write_paid_through(folder, 600_000)
    keeper.start(folder)
    driver, watts = machine.driver, 0.0
    while (status := keeper.wait(folder, 0.5)) is None:
        if driver is not None:
            watts = max(watts, *(driver.load(one).watts or 0.0 for one in machine.minors))
    text = (folder / "stdout.log").read_text(errors="replace")
    metrics = folder / "job" / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    speeds = [json.loads(line).get("tokens_per_s", 0.0) for line in lines]
    found: dict[str, object] = {
        "code": status.exit_code,
        "why": status.why,
        "ran_s": status.running_ms / 1000,
        "tokens_per_s": round(max(speeds, default=0.0)),
        "watts": round(watts),
    }
    if status.exit_code == 0:
        found |= json.loads(text.splitlines()[-1])
    else:
        found["stderr"] = (folder / "stderr.log").read_text(errors="replace")[-1500:]
    outputs.clean(folder)
    return found


def main() -> None:
    """All of it, in order."""
    workspace.own_mounts()
    with tempfile.TemporaryDirectory(prefix="gl-gpu-") as name:
        scratch = Path(name)
        os.chmod(scratch, 0o755)
        state = State(scratch / "state")
        state.root.mkdir(mode=0o700)
        state.cache.mkdir(parents=True, exist_ok=True)
        found = walls.attack(state, unsafe=False)
        machine = hardware.survey(state, environment.look(), found)
        say("inventory", **json.loads(encode(machine.inventory)))
        prove(scratch)
        bases: dict[str, tuple[Path, BaseShape]] = {}
        plain = [(shape, recipe, {**TUNED, **wanted}) for shape, recipe, wanted in RUNS]
        for shape, recipe, wanted in [*plain, *COMPOSED]:
            if sys.argv[1:] and recipe not in sys.argv[1:]:
                continue
            used = shape if machine.minors else "small"
            if used not in bases:
                bases[used] = write_base(scratch / used, used)
            base, sizes = bases[used]
            raw = catalog.as_json(catalog.validate(recipe, dict(wanted)))
            told = memory.needed(recipe, raw, sizes)
            ran = train(machine, scratch, base, recipe, raw)
            say("run", shape=used, name=recipe, given=wanted, allocated=told.allocated,
                needed=told.on(CUDA if machine.minors else "cpu-any"), **ran)  # fmt: skip


if __name__ == "__main__":
    main()
