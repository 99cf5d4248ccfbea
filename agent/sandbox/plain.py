"""No sandbox: a plain subprocess with limits, for development (`--unsafe-no-sandbox`).

There is no /job then. Everything the job is told names it, so the paths are translated: in its
arguments and environment, and in job.json.
"""

import json
from pathlib import Path

from agent.order import KeeperOrder
from agent.sandbox import bubblewrap


def translate(
    folder: Path, argv: list[str], env: dict[str, str]
) -> tuple[list[str], dict[str, str]]:
    """argv and environment with the sandbox's paths replaced by the host's."""
    env = {name: _host_path(folder, value) for name, value in env.items()}
    return [_host_path(folder, word) for word in argv], env


def prepare(folder: Path, order: KeeperOrder) -> None:
    """Puts inputs and package where the translated paths look for them."""
    inputs = folder / "job" / "inputs"
    inputs.mkdir(exist_ok=True)
    for name, source in order.inputs.items():
        _link(inputs / name, Path(source))
    for part, origin in bubblewrap.package_parts().items():
        _link(folder / "package" / part, origin)
    told = folder / "job" / "job.json"
    if told.exists():
        told.write_text(json.dumps(_host_paths(folder, json.loads(told.read_text()))))


def _link(path: Path, source: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_symlink():
        path.symlink_to(source)


def _host_path(folder: Path, text: str) -> str:
    for inside, outside in (("/job", folder / "job"), ("/opt/gridloom", folder / "package")):
        if text == inside or text.startswith(f"{inside}/"):
            return str(outside) + text[len(inside) :]
    return text


def _host_paths(folder: Path, value: object) -> object:
    if isinstance(value, str):
        return _host_path(folder, value)
    if isinstance(value, list):
        return [_host_paths(folder, one) for one in value]
    if isinstance(value, dict):
        return {name: _host_paths(folder, one) for name, one in value.items()}
    return value
