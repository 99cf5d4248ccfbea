"""What packages a project asks for, read from its own files. Pure.

Only what names a package of the index is taken: an address, a path, another index or a build of
the project itself would let a stranger's file say where our resolver goes.
"""

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from marketplace.core.errors import Invalid

FILES: Final = ("requirements.lock", "uv.lock", "requirements.txt", "pyproject.toml")
"""In the order in which they count: what is pinned goes before what is not."""
MOST_BYTES: Final = 4 * 2**20
"""Of one such file."""
_MOST: Final = 1000
_FOREIGN: Final = frozenset(
    "environment.yml environment.yaml Pipfile Pipfile.lock poetry.lock Dockerfile "
    "Containerfile".split()
)
_FAMILY: Final = re.compile(r"torch|triton|pytorch-triton|nvidia-(?!ml-py).*|cuda-.*")


@dataclass(frozen=True)
class Asked:
    """A project's packages: what it requires, and what it has pinned already."""

    requirements: Sequence[str]
    constraints: Sequence[str] = ()
    hashes: Mapping[str, Collection[str]] = field(default_factory=dict)
    """Package → SHA-256 of the files that the project's own lock allows."""

    @property
    def names(self) -> frozenset[str]:
        """Packages that it names itself."""
        return frozenset(canonicalize_name(Requirement(line).name) for line in self.requirements)


def chosen(paths: Collection[str]) -> tuple[str, ...]:
    """The files of a project that say what it needs; none if it says nothing.

    Raises Invalid if it says so only in a form that can't be read.
    """
    found = next((name for name in FILES if name in paths), "")
    foreign = sorted(_FOREIGN & set(paths))
    if foreign and found in ("", "pyproject.toml"):
        raise Invalid(
            f"the project says what it needs in {foreign[0]}, which can't be resolved here; bring "
            "a requirements.txt (or a uv.lock with its pyproject.toml)",
            field="script",
        )
    if found == "uv.lock":
        if "pyproject.toml" not in paths:
            raise Invalid("a uv.lock needs its pyproject.toml beside it", field="script")
        return ("uv.lock", "pyproject.toml")
    return (found,) if found else ()


def read(files: Mapping[str, bytes], *, python: str) -> Asked | None:
    """What these files ask for on this Python ("3.11"); None if that is nothing.

    Raises Invalid naming the line at fault.
    """
    texts = {name: _text(name, data) for name, data in files.items()}
    if "pyproject.toml" in texts:
        found = _project(_toml("pyproject.toml", texts["pyproject.toml"]), python)
        if "uv.lock" in texts:
            found = _pinned(found, _toml("uv.lock", texts["uv.lock"]))
    else:
        [(name, text)] = texts.items()
        found = _lines(name, text)
    if len(found.requirements) > _MOST:
        raise Invalid(f"a job asks for at most {_MOST} packages", field="script")
    return found if found.requirements else None


def is_of_torch(name: str) -> bool:
    """Whether a package is torch, or belongs to a build of it (agent.packages has the same)."""
    return bool(_FAMILY.fullmatch(canonicalize_name(name)))


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Invalid(f"{name} is not UTF-8 text", field="script") from None


def _toml(name: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"{name} can't be read: {error}", field="script") from None


def _lines(name: str, text: str) -> Asked:
    requirements: list[str] = []
    hashes: dict[str, frozenset[str]] = {}
    for number, line in _logical(text):
        words = line.split()
        if line.startswith(("-", ".", "/")):
            raise Invalid(
                f"{name}, line {number}: {line[:80]!r} is not taken; name packages of the index "
                "alone, one a line, and put those of other files into this one",
                field="script",
            )
        kept = " ".join(word for word in words if not word.startswith("--hash="))
        one = _requirement(kept, f"{name}, line {number}")
        requirements.append(str(one))
        allowed = [word.partition("sha256:")[2] for word in words if "--hash=sha256:" in word]
        if allowed:
            hashes[canonicalize_name(one.name)] = frozenset(allowed)
    return Asked(requirements, hashes=hashes)


def _logical(text: str) -> Iterator[tuple[int, str]]:
    """Lines without comments, continuations joined, each with the number of its first line."""
    begun, so_far = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*$", "", line).strip()
        begun = begun if so_far else number
        so_far += line.removesuffix("\\") + " "
        if not line.endswith("\\"):
            if so_far.strip():
                yield begun, so_far.strip()
            so_far = ""
    if so_far.strip():
        yield begun, so_far.strip()


def _requirement(text: str, where: str) -> Requirement:
    if not text.isprintable():
        # A line end within quotes would become a line of its own for the resolver: an option.
        raise Invalid(f"{where}: {text[:80]!r} has control characters", field="script")
    try:
        found = Requirement(text)
    except InvalidRequirement as error:
        raise Invalid(f"{where}: {text[:80]!r} names no package: {error}", field="script") from None
    if found.url:
        raise Invalid(
            f"{where}: {found.name} is asked for by an address; packages come from the index, "
            f"as in {found.name}>=1.0",
            field="script",
        )
    return found


def _project(told: Mapping[str, Any], python: str) -> Asked:
    project = told.get("project")
    if not isinstance(project, dict):
        if told.get("tool", {}).get("poetry", {}).get("dependencies"):
            raise Invalid(
                "pyproject.toml names its packages in [tool.poetry]; name them in [project] "
                "dependencies, or bring a requirements.txt",
                field="script",
            )
        return Asked(())
    if "dependencies" in project.get("dynamic", ()):
        raise Invalid(
            "pyproject.toml has dynamic dependencies, which only building it would tell; bring a "
            "requirements.txt",
            field="script",
        )
    _require_python(str(project.get("requires-python", "")), python)
    named = project.get("dependencies", [])
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
        raise Invalid("pyproject.toml: dependencies must be a list of texts", field="script")
    return Asked([str(_requirement(one, "pyproject.toml")) for one in named])


def _require_python(wanted: str, python: str) -> None:
    try:
        fits = SpecifierSet(wanted).contains(f"{python}.99")
    except InvalidSpecifier:
        raise Invalid(
            f"pyproject.toml: requires-python {wanted!r} is none", field="script"
        ) from None
    if not fits:
        raise Invalid(
            f"the project needs Python {wanted}, and the nodes have {python}", field="script"
        )


def _pinned(asked: Asked, lock: Mapping[str, Any]) -> Asked:
    """With the versions and hashes of a uv.lock; one that has a package twice pins it not."""
    versions: dict[str, set[str]] = {}
    hashes: dict[str, set[str]] = {}
    packages = lock.get("package", [])
    for one in packages if isinstance(packages, list) else []:
        if not isinstance(one, dict) or "registry" not in one.get("source", {}):
            continue
        name = canonicalize_name(str(one.get("name", "")))
        versions.setdefault(name, set()).add(str(one.get("version", "")))
        for wheel in one.get("wheels", []):
            hashes.setdefault(name, set()).add(str(wheel.get("hash", "")).removeprefix("sha256:"))
    single = {name: found.pop() for name, found in versions.items() if len(found) == 1}
    pins = [str(_requirement(f"{name}=={version}", "uv.lock")) for name, version in single.items()]
    return Asked(asked.requirements, pins, {name: hashes.get(name, set()) for name in single})
