"""Whether what a job names goes together: licences, kinds of row, and a disk that holds it all.

Called while a job is planned, so that nothing is paid for what could not run.
"""

from collections.abc import Sequence
from typing import Final

from agent.recipes import formats
from agent.recipes.formats import Kind
from agent.recipes.parameters import Parameters
from buyers import licences
from buyers.models import Artifact, Dataset, Folder
from marketplace.core.errors import Invalid
from marketplace.core.specs import GIB, JobRequest
from marketplace.models import Org

# Recipes that are named by what learns, and not by what is learnt from.
_BY_WEIGHTS: Final = frozenset({"lora", "full"})


def require(org: Org, request: JobRequest, folders: Sequence[Folder]) -> None:
    """`folders` is all that the job reads: its licences accepted, and a disk that holds it.

    Raises Invalid naming the field.
    """
    for folder in folders:
        if isinstance(folder, Artifact):
            licences.require(org, folder)
    _require_disk(request, folders)


def require_kind(recipe: str, parameters: Parameters, dataset: Dataset | None) -> None:
    """Raises Invalid unless the rows are of the kind that the recipe reads."""
    kind = _kind_of(recipe, parameters)
    if dataset is None or kind is None or not dataset.kinds or kind in dataset.kinds:
        return
    raise Invalid(
        f"{recipe} reads rows of {kind} ({', '.join(formats.columns(kind))}), and those of "
        f"{dataset} are {' or '.join(dataset.kinds)}",
        field="dataset",
    )


def _kind_of(recipe: str, parameters: Parameters) -> Kind | None:
    """What the recipe reads; None where it reads anything, or says it in its stages."""
    method = getattr(parameters, "method", "sft" if recipe in _BY_WEIGHTS else recipe)
    return next((kind for name, kind in formats.KIND_OF.items() if name == method), None)


def _require_disk(request: JobRequest, folders: Sequence[Folder]) -> None:
    """What a job reads must fit on the disk that it books, before it has paid for either."""
    needed = sum(folder.bytes for folder in folders)
    if needed <= request.disk_bytes:
        return
    most = max(folders, key=lambda folder: folder.bytes)
    raise Invalid(
        f"what the job reads is {needed / GIB:.2f} GiB ({most} alone {most.bytes / GIB:.2f}), and "
        f"the disk that it books {request.disk_bytes / GIB:.4g} GiB: book more (disk_gib)",
        field="disk_gib",
    )
