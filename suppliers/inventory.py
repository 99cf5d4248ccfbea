"""What a node says it is made of: checked, and written into the columns the market decides by."""

import ipaddress
from collections.abc import Iterator
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec
from django.conf import settings
from django.db import connection, transaction

from agent.protocol import Device, Inventory, Sandbox
from marketplace.core import energy
from marketplace.core.errors import Conflict, Invalid
from marketplace.core.hardware import cpu_class, gpu_class
from suppliers.models import Gpu, Node
from suppliers.services import quarantine

# Past these a figure is a slip or a lie, and would not fit its column.
_MOST_MEMORY: Final = 2**50
_MOST_DISK: Final = 2**60
_MOST_CORES: Final = 4096
_MOST_WATTS: Final = 10_000
_MOST_INDEX: Final = 1024
_LONGEST_UUID: Final = 80
_LONGEST_VERSION: Final = 40
_LONGEST_RUNG: Final = 60

# The memory of a machine without a GPU differs by so much from one start of its system to the next.
_JITTER: Final = 1.05
_CHANGED: Final = "its hardware changed; a fresh proof is asked for"

# One statement, so that two nodes that list one device at the same time can't both have it.
# A retired node has let go of its devices, and one that never passed a proof has no claim to any.
_UPSERT: Final = """
    INSERT INTO suppliers_gpu
        (id, node_id, uuid, index, name, gpu_class, memory_bytes, watts, present)
    SELECT gen_random_uuid(), %(node)s, d.uuid, d.index, d.name, d.gpu_class, d.memory_bytes,
           d.watts, true
    FROM unnest(%(uuids)s::text[], %(indexes)s::int[], %(names)s::text[], %(classes)s::text[],
                %(memories)s::bigint[], %(watts)s::int[])
         AS d(uuid, index, name, gpu_class, memory_bytes, watts)
    ORDER BY d.uuid
    ON CONFLICT (uuid) DO UPDATE SET
        node_id = excluded.node_id, index = excluded.index, name = excluded.name,
        gpu_class = excluded.gpu_class,
        memory_bytes = CASE WHEN %(shrink)s
            THEN least(suppliers_gpu.memory_bytes, excluded.memory_bytes)
            ELSE excluded.memory_bytes END,
        watts = excluded.watts, present = true
    WHERE suppliers_gpu.node_id = excluded.node_id OR EXISTS (
        SELECT FROM suppliers_node n WHERE n.id = suppliers_gpu.node_id AND (
            n.state = 'retired' OR n.state = 'pending' AND NOT EXISTS (
                SELECT FROM suppliers_benchmark b WHERE b.node_id = n.id AND b.passed)))
    RETURNING uuid
"""


class DeviceTaken(Conflict):
    """A device is listed by another node; nothing was written."""

    code = "device_taken"


def sandbox_refusal(sandbox: Sandbox) -> str:
    """Why strangers' code may not run there; "" if it may.

    There must be a wall, and the agent's attack on it must have found no harmful hole. Only a
    market set up for development (ALLOW_UNSANDBOXED_NODES) takes others.
    """
    if settings.ALLOW_UNSANDBOXED_NODES:
        return ""
    if sandbox.rung.lower().startswith("none"):
        return (
            "a node without a sandbox isn't accepted here: run `python -m agent doctor` on it to "
            "see what is missing, and start it without --unsafe-no-sandbox"
        )
    if sandbox.harmful:
        return (
            f"its sandbox doesn't hold: {sandbox.harmful} of {sandbox.checks} attacks of its own "
            "got through; run `python -m agent doctor` on it to see which"
        )
    return ""


def apply_inventory(node: Node, inventory: Inventory, *, now: datetime) -> bool:
    """Brings a known node's row and devices up to date with what it says; devices no longer
    listed are kept as not present. Raises Invalid for figures that can't be.

    Returns False, and quarantines the node, if it lists a device of another node, has no sandbox
    that holds, or has more than it proved. Most nodes come back as they left, and cost no write
    then.
    """
    refusal = sandbox_refusal(inventory.sandbox)
    if refusal:
        # Before the rest: growth would leave it confirmed.
        quarantine(node, reason=refusal, now=now)
    trusted = not refusal
    try:
        if msgspec.to_builtins(inventory) != node.inventory or not _has_all(node, inventory):
            trusted &= _change(node, inventory, now=now)
    except DeviceTaken as taken:
        quarantine(node, reason=str(taken), now=now)
        return False
    return trusted


def write_inventory(node: Node, inventory: Inventory, *, at_most_as_before: bool = False) -> None:
    """The same for a node being enrolled: raises DeviceTaken instead. Call in a transaction.

    With `at_most_as_before` a known device's memory only sinks, so that jitter adds up to nothing.
    """
    _check(inventory)
    node.inventory = msgspec.to_builtins(inventory)
    node.agent_version = inventory.agent_version
    node.sandbox = inventory.sandbox.rung
    node.environment = inventory.environment.lock
    node.cpu_model = inventory.cpu_model
    node.cpu_cores = inventory.cpu_cores
    node.memory_bytes = inventory.memory_bytes
    node.disk_bytes = inventory.disk_bytes
    node.nvlink = inventory.nvlink
    node.lan_address = inventory.lan_address
    node.egress = inventory.egress
    node.builds = inventory.builds
    node.registries = inventory.registries
    node.python = ".".join(inventory.environment.python.split(".")[:2])[:10]
    # What follows a plus tells one build of a version from another.
    node.torch = inventory.environment.packages.get("torch", "").partition("+")[0][:40]
    node.save(
        update_fields=[
            "inventory", "agent_version", "sandbox", "environment", "cpu_model", "cpu_cores",
            "memory_bytes", "disk_bytes", "nvlink", "lan_address", "egress", "builds", "python",
            "torch", "registries",
        ]
    )  # fmt: skip
    listed = _write_devices(node, inventory.devices, at_most_as_before)
    taken = sorted(device.uuid for device in inventory.devices if device.uuid not in listed)
    if taken:
        raise DeviceTaken(
            f"device {taken[0]} is listed by another node; retire that node first, "
            "or write to us if it isn't yours"
        )
    Gpu.objects.filter(node=node, present=True).exclude(uuid__in=listed).update(present=False)


def growth(node: Node, inventory: Inventory) -> str:
    """What `inventory` has that the node didn't have until now; "" if nothing. Less is fine."""
    had = {gpu.uuid: gpu for gpu in node.gpus.filter(present=True)}
    for device in inventory.devices:
        before = had.get(device.uuid)
        if before is None:
            return f"device {device.uuid} is new"
        if device_class(device) != before.gpu_class:
            return f"device {device.uuid} was a {before.gpu_class}"
        if device.memory_bytes > before.memory_bytes * (_JITTER if device.kind == "cpu" else 1):
            return f"device {device.uuid} had less memory"
    return "it had no NVLink" if inventory.nvlink and not node.nvlink else ""


@transaction.atomic
def _change(node: Node, inventory: Inventory, *, now: datetime) -> bool:
    """Writes another inventory than before; False if the node must prove itself anew.

    What it proved was what it had, so growth costs it its place, and ends a proof under way: that
    was asked of less. Its owner need not confirm it again, unless they had taken it out: a drained
    node must not come back by itself.
    """
    held = Node.objects.select_for_update(no_key=True)
    node.refresh_from_db(fields=["state", "state_since", "confirmed_at"], from_queryset=held)
    grown = growth(node, inventory)
    proved = node.state in ("ready", "draining") or (
        node.state == "pending" and node.benchmarks.filter(passed=True).exists()
    )
    write_inventory(node, inventory, at_most_as_before=not grown)
    if not grown:
        return True
    asked = node.benchmarks.filter(finished_at=None)
    # Whoever has seen which rows to open doesn't get out of opening them.
    asked.filter(committed_at__isnull=False).update(
        finished_at=now, passed=False, verdict="its hardware changed before it was opened"
    )
    asked.update(finished_at=now, verdict="its hardware changed")
    if proved:
        confirmed = None if node.state == "draining" else node.confirmed_at
        quarantine(node, reason=f"{_CHANGED} ({grown})"[:200], now=now, confirmed_at=confirmed)
    return not proved


def _has_all(node: Node, inventory: Inventory) -> bool:
    """Whether all that it lists is still its own: another may have taken it while it waited."""
    own = set(node.gpus.filter(present=True).values_list("uuid", flat=True))
    return own == {device.uuid for device in inventory.devices}


def device_class(device: Device) -> str:
    """The class that a device trades in."""
    return cpu_class(device.name) if device.kind == "cpu" else gpu_class(device.name)


def _write_devices(node: Node, devices: list[Device], at_most_as_before: bool) -> set[str]:
    """Inserts or updates what may be this node's; returns the uuids that now are."""
    classes = [device_class(device) for device in devices]
    values: dict[str, UUID | bool | list[str] | list[int]] = {
        "node": node.pk,
        "shrink": at_most_as_before,
        "uuids": [device.uuid for device in devices],
        "indexes": [device.index for device in devices],
        "names": [device.name for device in devices],
        "classes": classes,
        "memories": [device.memory_bytes for device in devices],
        "watts": [
            device.watts or energy.watts(name, cores=device.cores or 1)
            for device, name in zip(devices, classes, strict=True)
        ],
    }
    with connection.cursor() as cursor:
        cursor.execute(_UPSERT, values)
        return {row[0] for row in cursor.fetchall()}


def _check(inventory: Inventory) -> None:
    for text in _texts(msgspec.to_builtins(inventory)):
        if not text.isprintable():
            raise Invalid("an inventory must not contain control characters", field="inventory")
    _at_most(inventory.memory_bytes, _MOST_MEMORY, "memory_bytes")
    _at_most(inventory.disk_bytes, _MOST_DISK, "disk_bytes")
    _at_most(inventory.cpu_cores, _MOST_CORES, "cpu_cores")
    _at_most(len(inventory.agent_version), _LONGEST_VERSION, "the length of agent_version")
    _at_most(len(inventory.sandbox.rung), _LONGEST_RUNG, "the length of the sandbox's rung")
    if inventory.lan_address and not _is_ipv4(inventory.lan_address):
        raise Invalid(
            f"lan_address is an IPv4 address, not {inventory.lan_address}", field="inventory"
        )
    for device in inventory.devices:
        _at_most(len(device.uuid), _LONGEST_UUID, "the length of a device's uuid")
        _at_most(device.memory_bytes, _MOST_MEMORY, "a device's memory_bytes")
        _at_most(device.watts, _MOST_WATTS, "a device's watts")
        _at_most(device.cores, _MOST_CORES, "a device's cores")
        _at_most(device.index, _MOST_INDEX, "a device's index")
    if len({device.uuid for device in inventory.devices}) < len(inventory.devices):
        raise Invalid("the inventory lists one device twice", field="inventory")


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _at_most(value: int, most: int, what: str) -> None:
    if value > most:
        raise Invalid(f"{what} is at most {most}, not {value}", field="inventory")


def _texts(value: object) -> Iterator[str]:
    """All strings within plain values, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _texts(key)
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
