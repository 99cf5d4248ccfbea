"""Two suppliers' machines on this one: sites, enrolment, proof, offers, as suppliers do it.

Everything goes through the REST API and the agent's own command line, with the suppliers' keys.
What is there already, from an earlier start, is left as it is.
"""

import ipaddress
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from marketplace.devstack import bootstrap
from marketplace.devstack.process import StackError
from marketplace.devstack.stack import ROOT, Say, Stack, split_cores
from marketplace.devstack.supervisor import Supervisor

Account = Mapping[str, str]
_ENROL_S: Final = 120
_READY_S: Final = 90
_POLL_S: Final = 0.25


@dataclass(frozen=True)
class Machine:
    """One node of the development site: whose it is, where it stands, what it asks."""

    name: str
    supplier: str
    site: Mapping[str, object]
    ask: str


MACHINES: Final = (
    Machine(
        "aurora",
        "supplier",
        {"name": "Northlight rack", "region": "eu-north", "carbon_g_per_kwh": 30,
         "tariff_per_kwh": "0.09", "pue": 1.1},
        "0.40",
    ),
    Machine(
        "breakwater",
        "supplier2",
        {"name": "Harbour room", "region": "eu-west", "carbon_g_per_kwh": 270,
         "tariff_per_kwh": "0.24", "pue": 1.3},
        "0.55",
    ),
)  # fmt: skip


def nodes(
    stack: Stack,
    supervisor: Supervisor,
    accounts: Sequence[Account],
    *,
    say: Say,
    machines: Sequence[Machine] = MACHINES,
) -> list[dict[str, Any]]:
    """Enrols and starts the nodes and waits until each has proved itself and is on offer.

    Returns them as their suppliers see them. Raises StackError saying which step failed.
    """
    keys = {account["role"]: account["key"] for account in accounts}
    cores = split_cores(len(machines))
    # Each on cores of its own, so all at once.
    enrolling = [
        (machine, _begin_enrolment(stack, keys[machine.supplier], machine, cpus))
        for machine, cpus in zip(machines, cores, strict=True)
        if not (stack.node_folder(machine.name) / "config.json").exists()
    ]
    for machine, process in enrolling:
        _confirm(stack, keys[machine.supplier], machine, process)
        say(f"{machine.name}: enrolled, its fingerprint confirmed by its owner")
    supervisor.start(
        *(stack.node(machine.name, cpus) for machine, cpus in zip(machines, cores, strict=True))
    )
    return [_on_offer(stack, keys[machine.supplier], machine, say) for machine in machines]


def _begin_enrolment(
    stack: Stack, key: str, machine: Machine, cpus: frozenset[int]
) -> subprocess.Popen[str]:
    with _api(stack, key) as api:
        site = _site(api, machine)
        secret = _ask(api, "POST", f"sites/{site['id']}/tokens/", {"nodes": 1})["secret"]
    command = [
        sys.executable, "-m", "agent", "enroll", "--market", stack.agents_url,
        "--token", secret, "--name", machine.name, "--yes",
        "--state", str(stack.node_folder(machine.name)),
    ]  # fmt: skip
    return subprocess.Popen(
        command,
        env={**os.environ, **stack.node_environment()},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: _stay_on(cpus),
    )


def _confirm(stack: Stack, key: str, machine: Machine, process: subprocess.Popen[str]) -> None:
    try:
        printed, complaint = process.communicate(timeout=_ENROL_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise StackError(
            f"The node {machine.name} did not enrol within {_ENROL_S:.0f} s."
        ) from None
    shown = re.search(r"([0-9a-f]{4}:){7}[0-9a-f]{4}", printed)
    if process.returncode or shown is None:
        raise StackError(
            f"The node {machine.name} could not enrol: {(complaint or printed).strip()}"
        )
    _allow_index(stack.node_folder(machine.name) / "config.json")
    # What a person reads off the machine's own screen.
    with _api(stack, key) as api:
        node = _find(api, machine)
        _ask(api, "POST", f"nodes/{node['id']}/confirm/", {"fingerprint": shown.group()})


def _allow_index(path: Path) -> None:
    """Lets environments be built where the package index lies on an address that is not public: a
    mirror's, which a supplier would have to allow on purpose."""
    index = urlsplit(bootstrap.registry().index)
    port = index.port or (443 if index.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(index.hostname, port, type=socket.SOCK_STREAM)
    except OSError:
        return  # a build will say so
    addresses = {ipaddress.ip_address(place[0]) for *_, place in found}
    private = sorted(str(one) for one in addresses if not one.is_global)
    if private:
        config = json.loads(path.read_text())
        config["network"] = {**config.get("network", {}), "allow": private}
        path.write_text(json.dumps(config, indent=2))


def _on_offer(stack: Stack, key: str, machine: Machine, say: Say) -> dict[str, Any]:
    with _api(stack, key) as api:
        deadline = time.monotonic() + _READY_S
        while (node := _find(api, machine))["state"] != "ready" or not node["connected"]:
            if time.monotonic() > deadline or node["state"] in ("quarantined", "retired"):
                raise StackError(
                    f"The node {machine.name} is {node['state']}: {node['words']}. Its log is "
                    f"{stack.logs / f'node-{machine.name}.log'}."
                )
            time.sleep(_POLL_S)
        if node["offer"] is None:
            _ask(api, "POST", f"nodes/{node['id']}/offers/", {"ask": machine.ask, "notice_s": 30})
            node = _find(api, machine)
        proof = node["proof"] or {"tflops": 0.0}
        say(
            f"{machine.name}: {node['gpus'][0]['gpu_class']}, {proof['tflops']:.3f} TFLOP/s "
            f"proved, sandbox {node['sandbox']}, asks {machine.ask} an hour"
        )
        return node


def _site(api: httpx.Client, machine: Machine) -> dict[str, Any]:
    for site in _ask(api, "GET", "sites/")["results"]:
        if site["name"] == machine.site["name"]:
            return dict(site)
    return _ask(api, "POST", "sites/", machine.site)


def _find(api: httpx.Client, machine: Machine) -> dict[str, Any]:
    found = [
        node
        for node in _ask(api, "GET", "nodes/")["results"]
        if node["name"] == machine.name and node["state"] != "retired"
    ]
    if not found:
        raise StackError(
            f"The market knows no node {machine.name}, though its folder is here: its data was "
            "removed without the node's. `make clean` removes both."
        )
    return dict(found[-1])


def _api(stack: Stack, key: str) -> httpx.Client:
    return httpx.Client(
        base_url=f"{stack.site_url}/api/v1/",
        headers={"Authorization": f"Bearer {key}"},
        timeout=20,
    )


def _ask(
    api: httpx.Client, method: str, path: str, body: Mapping[str, object] | None = None
) -> dict[str, Any]:
    answer = api.request(method, path, json=body)
    if answer.is_error:
        raise StackError(f"{method} {path} was refused: {answer.status_code} {answer.text[:500]}")
    return dict(answer.json())


def _stay_on(cpus: frozenset[int]) -> None:
    if cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
