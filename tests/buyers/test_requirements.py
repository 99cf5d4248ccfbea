"""What a project asks for, read from its own files, and what of it is not taken."""

import pytest

from buyers import requirements
from marketplace.core.errors import Invalid

PROJECT = b"""
[project]
name = "mine"
requires-python = ">=3.10"
dependencies = ["numpy>=2", "rich[jupyter]; python_version < '4'"]
"""


def read(**files: bytes):
    named = {name.replace("_", "."): data for name, data in files.items()}
    return requirements.read(named, python="3.11")


def test_lines_comments_and_continuations_are_read_as_pip_reads_them():
    asked = read(
        requirements_txt=b"# mine\nnumpy>=2  # fast\n\nrich==15.0 \\\n  --hash=sha256:ab\n"
    )
    assert list(asked.requirements) == ["numpy>=2", "rich==15.0"]
    assert asked.hashes == {"rich": {"ab"}}
    assert asked.names == {"numpy", "rich"}


def test_a_project_and_its_lock_are_read_together():
    lock = b"""
version = 1
[[package]]
name = "numpy"
version = "2.4.6"
source = { registry = "https://pypi.org/simple" }
wheels = [{ url = "x", hash = "sha256:cd" }]
[[package]]
name = "mine"
version = "0"
source = { virtual = "." }
"""
    asked = read(pyproject_toml=PROJECT, uv_lock=lock)
    assert list(asked.constraints) == ["numpy==2.4.6"]
    assert asked.hashes == {"numpy": {"cd"}}
    assert len(asked.requirements) == 2


def test_a_file_that_asks_for_nothing_asks_for_nothing():
    assert read(requirements_txt=b"# nothing\n") is None
    assert read(pyproject_toml=b"[tool.ruff]\nline-length = 100\n") is None


@pytest.mark.parametrize(
    "line",
    ["-e .", "-r more.txt", "--index-url https://evil.example/simple", ".", "./wheels/x.whl",
     "/etc/passwd", "x @ http://169.254.169.254/x.whl", "git+https://a.example/x", "numpy>>2",
     "--find-links /", "x @ file:///etc/passwd"],
)  # fmt: skip
def test_what_is_no_package_of_the_index_is_refused_with_its_line(line):
    with pytest.raises(Invalid, match="line 2") as refused:
        read(requirements_txt=f"numpy\n{line}\n".encode())
    assert refused.value.field == "script"


@pytest.mark.parametrize("end", ["\\n", "\\r", "\\u2028", "\\u0085"])
def test_no_requirement_can_become_a_line_for_the_resolver(end):
    text = f"""[project]
dependencies = ["numpy; python_version < '4{end}--index-url http://elsewhere{end}'"]
"""
    with pytest.raises(Invalid, match="control characters"):
        read(pyproject_toml=text.encode())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"[project]\nname = 'x'\ndynamic = ['dependencies']\n", "dynamic"),
        (b"[project]\nname = 'x'\nrequires-python = '>=3.12'\n", "needs Python >=3.12"),
        (b"[project]\ndependencies = ['x @ http://a.example/x.whl']\n", "by an address"),
        (b"[tool.poetry.dependencies]\nnumpy = '^2'\n", r"\[tool.poetry\]"),
        (b"[project", "can't be read"),
        (b"\xff", "UTF-8"),
    ],
)
def test_a_project_that_can_not_be_read_says_what_to_do(text, why):
    with pytest.raises(Invalid, match=why):
        read(pyproject_toml=text)


def test_what_is_pinned_counts_before_what_is_not():
    assert requirements.chosen({"main.py"}) == ()
    assert requirements.chosen({"requirements.txt", "pyproject.toml"}) == ("requirements.txt",)
    assert requirements.chosen({"uv.lock", "pyproject.toml"}) == ("uv.lock", "pyproject.toml")
    assert requirements.chosen({"requirements.lock", "uv.lock"}) == ("requirements.lock",)
    for paths in ({"environment.yml"}, {"Dockerfile", "pyproject.toml"}, {"uv.lock"}):
        with pytest.raises(Invalid):
            requirements.chosen(paths)


@pytest.mark.parametrize(
    ("name", "belongs"),
    [("torch", True), ("nvidia-cublas-cu13", True), ("cuda_bindings", True), ("triton", True),
     ("nvidia-ml-py", False), ("torchvision", False), ("numpy", False)],
)  # fmt: skip
def test_what_belongs_to_torch_is_told_by_its_name(name, belongs):
    assert requirements.is_of_torch(name) is belongs
