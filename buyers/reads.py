"""What a job reads besides its base: found, and held against what its recipe needs.

`buyers.services` calls it while it plans; nothing is written here.
"""

from agent.recipes import catalog, formats
from agent.recipes.parameters import (
    ArithmeticParameters,
    ChainParameters,
    FineTuning,
    Parameters,
    PromptParameters,
)
from buyers import references
from buyers.models import Artifact, Dataset, Job
from marketplace.core.errors import Invalid
from marketplace.core.specs import JobRequest
from marketplace.models import Org


def model(org: Org, request: JobRequest, name: str) -> Artifact | None:
    """A further model that the request names; raises Invalid unless it is known and usable."""
    reference = str(getattr(request, name))
    if not reference:
        return None
    found = references.base(org, reference, field=name)
    if not any(entry["path"].endswith(".safetensors") for entry in found.manifest):
        raise Invalid(f"{found} has no weights (*.safetensors); name another model", field=name)
    if request.recipe == "distill":
        require_whole(found, field=name)
    return found


def base(named: Artifact | None, recipe: str) -> dict[str, Artifact]:
    """What the base of a job stands for, by the node's names: an adapter comes with the whole model
    that it goes with, but for a script, which gets what it named."""
    if named is None:
        return {}
    whole = named.whole if recipe != "script" else None
    return {"base": named} if whole is None or whole is named else {"base": whole, "adapter": named}


def require_whole(model: Artifact | None, *, field: str) -> None:
    """Raises Invalid for an adapter alone, and for what is no model at all."""
    if not _is_whole(model):
        raise Invalid(
            f"{model} is no whole model (config.json and *.safetensors): take the base that it was "
            "made from",
            field=field,
        )


def require_start(base: Artifact | None, parameters: Parameters) -> None:
    """Raises Invalid unless a training can start from this base: a whole model, or an adapter that
    goes with one."""
    if base is None or not base.is_adapter:
        require_whole(base, field="base")
        return
    if why := why_not_from(base):
        raise Invalid(why, field="base")
    trained = catalog.tunings(parameters)
    if isinstance(parameters, ArithmeticParameters) or any(t.method == "reward" for t in trained):
        raise Invalid(
            f"{base} is an adapter, and this recipe starts from whole models only: take "
            f"{base.whole}, or go on from the adapter with all weights (full) first",
            field="base",
        )


def why_not_from(model: Artifact) -> str:
    """Why no training can start from a model; empty if one can."""
    if not _is_whole(model.whole):
        return f"{model} is no model that training can start from (config.json and *.safetensors)"
    if model.is_adapter and _scores(model.job):
        return f"{model} is an adapter that scores; a training starts from what writes"
    return ""


def _scores(made_by: Job | None) -> bool:
    return made_by is not None and "reward" in (
        made_by.recipe, made_by.parameters.get("method")
    )  # fmt: skip


def _is_whole(model: Artifact | None) -> bool:
    paths = {entry["path"] for entry in model.manifest} if model else set()
    return "config.json" in paths and any(
        path.endswith(".safetensors") and not path.startswith("adapter") for path in paths
    )


def require_weights(request: JobRequest, parameters: Parameters) -> None:
    """Raises Invalid for a second model that would count nothing, or a weight of no model."""
    if not isinstance(parameters, ArithmeticParameters):
        return
    if request.third and not parameters.second:
        raise Invalid(
            "third names a model, but its weight is 0; give it as the parameter second",
            field="third",
        )
    if parameters.second and not request.third:
        raise Invalid(
            "the parameter second weighs another model; name it as the input third", field="third"
        )


def mix(org: Org, request: JobRequest, parameters: Parameters) -> Dataset | None:
    """What is blended in; raises Invalid if it is named and not used, or used and not named."""
    tuned = catalog.tunings(parameters)
    blends = any(one.mix for one in tuned)
    if request.mix and not blends:
        raise Invalid(
            "mix names a dataset, but none of it is blended in; give its share as the parameter mix",
            field="mix",
        )
    if blends and not request.mix:
        raise Invalid(
            "the parameter mix blends in rows of a dataset; name it as the input mix", field="mix"
        )
    if not request.mix:
        return None
    found = references.dataset(org, request.mix, field="mix")
    _require_parts(found, "", learns=True, measures=False, field="mix")
    return found


def require_rows(
    request: JobRequest, parameters: Parameters, dataset: Dataset | None, script: Dataset | None
) -> None:
    """Raises Invalid unless the files are there that each training reads."""
    if dataset is not None:
        for beginning, learns, measures in _wanted(parameters):
            _require_parts(dataset, beginning, learns=learns, measures=measures)
    rewarded = [
        one
        for one in (*catalog.tunings(parameters), parameters)
        if isinstance(one, FineTuning | PromptParameters) and one.method == "grpo"
    ]
    paths = {entry["path"] for entry in script.manifest} if script else set()
    if script is not None and not rewarded:
        raise Invalid(
            f"the recipe {request.recipe} reads no script, but by the method grpo; leave it out",
            field="script",
        )
    if rewarded and catalog.REWARD_FILE not in paths:
        raise Invalid(
            f"grpo learns from your reward: name a script that has {catalog.REWARD_FILE}, with "
            "def reward(prompt, completion, row) -> float",
            field="script",
        )


def _wanted(parameters: Parameters) -> list[tuple[str, bool, bool]]:
    """Of each training: its folder of the dataset, whether it learns, whether it measures."""
    tuned = catalog.tunings(parameters)
    measures = [bool(one.evaluate_samples or one.answers) for one in tuned]
    match parameters:
        case ChainParameters(stages=stages):
            folders = [f"{stage.folder}/" if stage.folder else "" for stage in stages]
            return [(at, True, asked) for at, asked in zip(folders, measures, strict=True)]
        case PromptParameters():
            return [("", parameters.shots > 0, True)]
        case ArithmeticParameters():
            return [("", False, True)]
        case _:
            return [("", True, asked) for asked in measures]


def _require_parts(
    dataset: Dataset, beginning: str, *, measures: bool, learns: bool, field: str = "dataset"
) -> None:
    paths = [
        entry["path"].removeprefix(beginning)
        for entry in dataset.manifest
        if entry["path"].startswith(beginning)
    ]
    wanted = [formats.TRAIN] * learns + [formats.HELD_OUT] * measures
    for part in wanted:
        try:
            found = formats.file_of(part, paths)
        except ValueError as error:
            raise Invalid(f"{dataset} can't be read: {error}", field=field) from None
        if not found:
            ends = ", ".join(formats.EXTENSIONS)
            raise Invalid(
                f"{dataset} has no {beginning}{part}.jsonl (one of: {ends}); upload a version that "
                "has"
                + (" (or set evaluate_samples and answers to 0)" if part != formats.TRAIN else ""),
                field=field,
            )
