"""Whether what a job names goes together: licences, kinds of row, and a disk that holds it all.

Called while a job is planned, so that nothing is paid for what could not run.
"""

from collections.abc import Mapping, Sequence

from agent.recipes import catalog, formats
from agent.recipes.formats import Kind
from agent.recipes.parameters import (
    ArithmeticParameters,
    ChainParameters,
    Parameters,
    PromptParameters,
)
from buyers import licences
from buyers.models import Artifact, Dataset, Folder
from marketplace.core.errors import Invalid
from marketplace.core.specs import GIB, JobRequest
from marketplace.models import Org


def require(org: Org, request: JobRequest, folders: Mapping[str, Folder]) -> None:
    """`folders` is all that the job reads, by its field: licences accepted, and room on the disk.

    Raises Invalid naming the field.
    """
    for field, folder in folders.items():
        if isinstance(folder, Artifact):
            licences.require(org, folder, field=field)
    _require_disk(request, list(folders.values()))


def require_kinds(parameters: Parameters, dataset: Dataset | None, mix: Dataset | None) -> None:
    """Raises Invalid unless the rows are of the kind that each training reads."""
    for name, kind in _read_from_the_top(parameters):
        _require_kind(name, kind, dataset, field="dataset")
    for tuning in catalog.tunings(parameters):
        if tuning.mix:
            _require_kind(tuning.method, formats.KIND_OF[tuning.method], mix, field="mix")


def _read_from_the_top(parameters: Parameters) -> list[tuple[str, Kind]]:
    """Who reads rows of which kind; without a chain's stages that have a folder of their own,
    which nobody looks into at upload."""
    match parameters:
        case ChainParameters(stages=stages):
            tunings = [catalog.stage_of(stage) for stage in stages if not stage.folder]
        case PromptParameters(method=method):
            return [(method, formats.KIND_OF[method])]
        case ArithmeticParameters():
            return [("arithmetic", formats.KIND_OF["sft"])]
        case _:
            tunings = catalog.tunings(parameters)
    return [(each.method, formats.KIND_OF[each.method]) for each in tunings]


def _require_kind(name: str, kind: Kind, dataset: Dataset | None, *, field: str) -> None:
    if dataset is None or not dataset.kinds or kind in dataset.kinds:
        return
    raise Invalid(
        f"{name} reads rows of {kind} ({', '.join(formats.columns(kind))}), and those of "
        f"{dataset} are {' or '.join(dataset.kinds)}",
        field=field,
    )


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
