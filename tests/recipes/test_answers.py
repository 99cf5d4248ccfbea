"""Answers to held-out prompts are the same whoever else is asked at the same time."""

from pathlib import Path

from agent.recipes import evaluate, model
from agent.recipes.parameters import Measuring


def test_prompts_answered_together_are_answered_as_each_alone(base: Path) -> None:
    learner = model.load(base, Measuring(precision="fp32"), seed=0, base_name="tiny")
    texts = ("What is 2 + 2?", "Say it again, slowly, and in other words: who was it?", "Hi")
    prompts = [learner.tokenizer(text)["input_ids"] for text in texts]
    assert len({len(prompt) for prompt in prompts}) == 3
    together = evaluate.answers(learner, prompts, most=12)
    alone = [evaluate.answers(learner, [prompt], most=12)[0] for prompt in prompts]
    assert together == alone
    assert any(together)
