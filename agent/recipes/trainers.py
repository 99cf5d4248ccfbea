"""One trainer a method: TRL's own, made steady, fed with rows that our encoder has encoded."""

from collections.abc import Mapping
from typing import Any, Final

import datasets
import torch
from transformers.trainer_callback import PrinterCallback
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

from agent.recipes.catalog import Exit
from agent.recipes.encode import Encoder
from agent.recipes.formats import Preferred, Prompt
from agent.recipes.job import RecipeError
from agent.recipes.loss import answer_loss, distilled_loss
from agent.recipes.model import Learner
from agent.recipes.packing import Packed
from agent.recipes.parameters import (
    DistillParameters,
    DpoParameters,
    FullParameters,
    GrpoParameters,
    LoraParameters,
    why_not_on,
)
from agent.recipes.reward import Reward
from agent.recipes.rows import Table
from agent.recipes.training import Course, Groups, Steady, Watch

# Label of a token that is not to be learnt.
_NOT_LEARNT: Final = -100


class Supervised(Steady, SFTTrainer):
    """sft and continue."""

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """TRL's on GPUs and in gangs, ours on a processor alone: `agent.recipes.loss` says why."""
        self._require_answers(num_items_in_batch)
        if self.course.world.size > 1 or self.course.learner.device.type != "cpu":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        learn = inputs["labels"] != _NOT_LEARNT
        total, _ = answer_loss(self.course.learner, inputs["input_ids"], learn)
        self._total_train_tokens += int(inputs["attention_mask"].sum())
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        if not total.requires_grad:  # nothing is learnt in this part of the step
            total = total + 0 * next(p for _, p in self.course.learner.trained()).sum()
        return total / num_items_in_batch

    def _require_answers(self, count: Any) -> None:
        if count is not None and not int(count):
            raise RecipeError(
                Exit.PARAMETERS,
                f"step {self.course.state.step + 1}: no answer fits into max_length; "
                "raise max_length",
            )


class Distilled(Supervised):
    """distill: the teacher's whole distribution at each learnt token, not only the token itself.

    TRL's DistillationTrainer draws the student's own answers and scores those; here the rows'
    answers are learnt, as their owner wrote them, so it stays supervised.
    """

    teacher: Learner

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        parameters = self.course.parameters
        assert isinstance(parameters, DistillParameters)
        learn = inputs["labels"] != _NOT_LEARNT
        total = distilled_loss(
            self.course.learner, self.teacher, inputs["input_ids"], learn, parameters.softness
        )
        self._total_train_tokens += int(inputs["attention_mask"].sum())
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        self._require_answers(num_items_in_batch)
        return total / num_items_in_batch


class Preferences(Steady, DPOTrainer):
    """dpo."""


class Scores(Steady, RewardTrainer):
    """reward."""


class Rewarded(Steady, GRPOTrainer):
    """grpo. Answers are drawn in the same arithmetic as they are learnt in."""

    batches = Groups

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        with self.course.learner.arithmetic():
            return super()._prepare_inputs(generation_batch)


def build(
    course: Course,
    *,
    reference: Any = None,
    teacher: Learner | None = None,
    reward: Reward | None = None,
) -> Steady:
    """The trainer of the course's method. `reference`: the base as it was, for dpo of all weights;
    `teacher` is distill's, `reward` grpo's. Raises RecipeError for steps that can't be cut up.
    """
    if why := why_not_on(course.parameters, course.world.size):
        raise RecipeError(Exit.PARAMETERS, why)
    length = course.parameters.max_length
    match course.parameters.method:
        case "dpo":
            assert isinstance(course.parameters, DpoParameters | LoraParameters | FullParameters)
            args = _arguments(DPOConfig, course, beta=course.parameters.beta, max_length=length)
            trainer = _made(Preferences, course, args=args, ref_model=reference)
        case "reward":
            args = _arguments(RewardConfig, course, max_length=length)
            trainer = _made(Scores, course, args=args)
        case "grpo":
            assert reward is not None
            args = _arguments(GRPOConfig, course, **_drawing(course))
            trainer = _made(Rewarded, course, args=args, reward_funcs=[_called(reward)])
        case _:
            unprepared = {"skip_prepare_dataset": True}
            args = _arguments(SFTConfig, course, dataset_kwargs=unprepared, max_length=None)
            kind = Supervised if teacher is None else Distilled
            trainer = _made(kind, course, args=args)
            trainer.teacher = teacher
    trainer.remove_callback(PrinterCallback)
    return trainer


def example(encoder: Encoder, table: Table | Packed, index: int) -> dict[str, Any]:
    """A row as the collator of its method's trainer wants it."""
    if isinstance(table, Packed):
        ids = table.ids(index)
        return {"input_ids": ids, "labels": ids}
    row = table[index]
    if isinstance(row, Preferred):
        pair = encoder.pair(row)
        return {
            "prompt_ids": pair.prompt,
            "chosen_ids": pair.chosen,
            "rejected_ids": pair.rejected,
        }
    if isinstance(row, Prompt):
        return {"prompt": encoder.asked(row.prompt), "row": table.columns(index)}
    found = encoder.encode(row)
    labels = [
        token if learnt else _NOT_LEARNT
        for token, learnt in zip(found.ids, found.learn, strict=True)
    ]
    return {"input_ids": found.ids, "labels": labels}


def scored(pair: Mapping[str, Any]) -> dict[str, Any]:
    """A preference as a reward model reads it: each answer with the prompt before it."""
    return {
        "chosen_ids": pair["prompt_ids"] + pair["chosen_ids"],
        "rejected_ids": pair["prompt_ids"] + pair["rejected_ids"],
    }


def _made(kind: type[Steady], course: Course, **given: Any) -> Steady:
    # TRL looks at a first row to see what it is given; ours are encoded when they are read.
    first = {"input_ids": [0], "labels": [0], "prompt": "?", "chosen": "?", "rejected": "!"}
    trainer = kind(
        model=course.learner.whole,
        processing_class=course.learner.tokenizer,
        callbacks=[Watch(course)],
        train_dataset=datasets.Dataset.from_list([first]),
        **given,
    )
    trainer.course = course
    return trainer


def _arguments(kind: Any, course: Course, **more: Any) -> Any:
    parameters, world = course.parameters, course.world
    return kind(
        output_dir=course.job.output,
        max_steps=course.upto,
        per_device_train_batch_size=max(
            1, parameters.batch_size // (parameters.accumulate * world.size)
        ),
        gradient_accumulation_steps=parameters.accumulate,
        gradient_checkpointing=parameters.activations == "recompute",
        max_grad_norm=parameters.max_grad_norm,
        learning_rate=parameters.learning_rate,
        seed=course.job.seed % 2**32,
        # The learner's own arithmetic is used: accelerate's would keep logits in float32, too.
        bf16=False,
        fp16=False,
        use_cpu=course.learner.device.type == "cpu",
        ignore_data_skip=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        **({"ddp_backend": torch.distributed.get_backend()} if world.size > 1 else {}),
        **more,
    )


def _drawing(course: Course) -> dict[str, Any]:
    parameters = course.parameters
    assert isinstance(parameters, GrpoParameters | LoraParameters | FullParameters)
    return {
        "beta": parameters.beta,
        "num_generations": parameters.generations,
        "temperature": parameters.temperature,
        "max_completion_length": parameters.completion_length,
        "steps_per_generation": parameters.accumulate,
    }


def _called(reward: Reward) -> Any:
    """A reward as TRL calls it: for a list of answers."""

    def rewards(prompts: list[Any], completions: list[Any], **rest: Any) -> list[float]:
        return [
            reward(_text(prompt), _text(completion), row)
            for prompt, completion, row in zip(prompts, completions, rest["row"], strict=True)
        ]

    return rewards


def _text(said: Any) -> str:
    """The last thing said, of text or of messages."""
    return said if isinstance(said, str) else str(said[-1]["content"])
