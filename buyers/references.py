"""What a job names in words (a base, a dataset, a script), found among what its org may use."""

from uuid import UUID

from django.db.models import Case, When

from buyers.hub_models import Fetch
from buyers.models import Artifact, Dataset
from marketplace.core.errors import Invalid
from marketplace.models import Org


def dataset(org: Org, reference: str, *, field: str) -> Dataset:
    """A committed version by its id, its `name` (the latest) or `name@version`.

    `field` is what the job calls it. Raises Invalid; somebody else's looks like nobody's.
    """
    committed = Dataset.objects.of(org).committed().order_by("-version")
    name, at, version = reference.rpartition("@")
    if pk := _uuid(reference):
        found = committed.filter(pk=pk).first()
    elif not at:
        found = committed.filter(name=reference).first()
    elif version.isascii() and version.isdigit() and len(version) < 10:
        found = committed.filter(name=name, version=int(version)).first()
    else:
        raise Invalid(f"a version is a number, as in {name}@2, not {version!r}", field=field)
    if found is None:
        raise Invalid(
            f"you have no {field} {reference!r} that is uploaded and committed; "
            "look at your datasets, or upload it",
            field=field,
        )
    return found


def base(org: Org, reference: str, *, field: str = "base") -> Artifact:
    """A model to start from: by its id, the name of a public base or of an own model, or, fetched
    from a hub, as `repository` or `repository@revision`.

    Of several of one name the promoted one counts, else the newest. `field` is what the job calls
    it. Raises Invalid.
    """
    usable = Artifact.objects.usable_by(org).order_by(
        "-public", Case(When(state="current", then=0), default=1), "-created_at"
    )
    pk = _uuid(reference)
    found = usable.filter(pk=pk).first() if pk else usable.filter(name=reference).first()
    if found is None and "@" in reference:
        found = _at_revision(org, *reference.rsplit("@", 1))
    if found is None:
        bases = Artifact.objects.usable_by(org).bases().order_by("name")
        names = ", ".join(bases.values_list("name", flat=True).distinct()[:10])
        raise Invalid(
            f"there is no base {reference!r} that you may use"
            + (f"; there are {names}" if names else "")
            + "; one from a hub is added on the page Bases, or by `gridloom base add`",
            field=field,
        )
    return found


def _at_revision(org: Org, repo: str, revision: str) -> Artifact | None:
    """A fetched base by the revision that was asked for, or by the beginning of its commit."""
    fetched = Fetch.objects.of(org).filter(repo=repo).exclude(artifact=None)
    named = fetched.filter(revision=revision)
    if not named and len(revision) >= 7:
        named = fetched.filter(commit__startswith=revision)
    found = named.select_related("artifact").order_by("-created_at").first()
    return found.artifact if found else None


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
