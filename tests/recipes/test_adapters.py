"""Jobs that go on from an adapter: they start where it ended, and hand over both as one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from agent.recipes import __main__ as program
from agent.recipes import verdict
from agent.recipes.catalog import Exit

WriteJob = Callable[..., Path]
FIRST = {"learning_rate": 0.02, "rank": 4, "alpha": 12, "targets": ["q_proj", "down_proj"]}
SECOND = {"learning_rate": 0.02, "rank": 2, "alpha": 2, "targets": ["q_proj", "v_proj"]}

pytestmark = pytest.mark.usefixtures("own_signals")


def run(job: Path) -> int:
    return program.main([str(job)])


def made(job: Path) -> Path:
    return job.parent / "output" / "artifact"


def target(job: Path) -> verdict.Domain:
    return verdict.read((made(job) / verdict.FILE).read_bytes()).domains[0]


@pytest.fixture
def first(job: WriteJob) -> Path:
    path = job("first", parameters=FIRST)
    assert run(path) == Exit.DONE
    return path


@pytest.fixture
def going_on(job: WriteJob, base: Path, dataset: Path, first: Path) -> WriteJob:
    def write(recipe: str = "lora", **parameters: object) -> Path:
        inputs = {"base": str(base), "dataset": str(dataset), "adapter": str(made(first))}
        return job("second", recipe=recipe, inputs=inputs, parameters=parameters)

    return write


def logits(base: Path, adapter: Path | None) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(1, 40)[None]).logits
    return found


def test_an_adapter_is_gone_on_from_where_it_ended(first: Path, going_on: WriteJob) -> None:
    second = going_on(**SECOND)
    assert run(second) == Exit.DONE
    assert target(second).before == pytest.approx(target(first).after, rel=1e-3)
    assert target(second).after < target(second).before
    assert {p.name for p in (second.parent / "output").iterdir()} == {"artifact"}


def test_two_adapters_are_handed_over_as_one_of_their_common_base(
    first: Path, going_on: WriteJob, base: Path
) -> None:
    second = going_on(**SECOND, steps=1)
    assert run(second) == Exit.DONE
    config = json.loads((made(second) / "adapter_config.json").read_text())
    assert (config["r"], sorted(config["target_modules"])) == (6, ["down_proj", "q_proj", "v_proj"])
    # A new adapter is nothing before its first step, and after one of them little.
    before, after = logits(base, made(first)), logits(base, made(second))
    assert (after - before).abs().max() < (before - logits(base, None)).abs().max() / 2
    assert not torch.equal(after, before)


def test_it_learns_the_same_as_from_the_whole_model_that_the_adapter_makes(
    first: Path, going_on: WriteJob, job: WriteJob, base: Path, dataset: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(made(first))
    ).merge_and_unload().save_pretrained(whole)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (whole / name).write_bytes((base / name).read_bytes())
    from_whole = job(
        "whole-job", inputs={"base": str(whole), "dataset": str(dataset)}, parameters=SECOND
    )
    second = going_on(**SECOND)
    assert (run(second), run(from_whole)) == (Exit.DONE, Exit.DONE)
    expected = logits(whole, made(from_whole))
    assert torch.allclose(logits(base, made(second)), expected, atol=1e-3)


def test_all_weights_go_on_from_an_adapter_to_a_whole_model(
    first: Path, going_on: WriteJob
) -> None:
    second = going_on("full", learning_rate=0.001)
    assert run(second) == Exit.DONE
    assert (made(second) / "model.safetensors").exists()
    assert target(second).before == pytest.approx(target(first).after, rel=1e-3)


def test_a_chain_goes_on_from_an_adapter(first: Path, going_on: WriteJob) -> None:
    stages = [{"recipe": "lora", "parameters": {**SECOND, "steps": 3, "max_length": 64}}]
    second = going_on("chain")
    told = json.loads(second.read_text())
    told["parameters"] = {"stages": stages * 2}
    second.write_text(json.dumps(told))
    assert run(second) == Exit.DONE
    assert (made(second) / "model.safetensors").exists()
    # The last stage measures what the first one has made of the adapter.
    assert target(second).before < target(first).after


def test_an_adapter_of_another_base_is_refused(
    job: WriteJob, base: Path, dataset: Path, first: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = made(first) / "adapter_model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-8])
    inputs = {"base": str(base), "dataset": str(dataset), "adapter": str(made(first))}
    assert run(job("second", inputs=inputs, parameters=SECOND)) == Exit.INPUT
    assert "the adapter does not fit this base" in capfd.readouterr().err


def test_an_adapter_without_weights_is_refused(
    going_on: WriteJob, first: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (made(first) / "adapter_model.safetensors").unlink()
    assert run(going_on(**SECOND)) == Exit.INPUT
    assert "the adapter does not fit this base" in capfd.readouterr().err
