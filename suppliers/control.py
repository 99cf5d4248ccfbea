"""What a supplier's click or call sets going: a service's verb, and then the engine's part of it.

Pages and the REST API both come through here, so that neither forgets to tell the engine.
"""

from datetime import datetime

from django.contrib.auth.models import User

from marketplace import telemetry
from marketplace.core.errors import Conflict
from scheduler import assignments, tasks, watch
from scheduler.models import Assignment
from suppliers import offers, services, verification
from suppliers.models import Node, Offer


def confirm(node: Node, fingerprint: str, *, by: User, now: datetime) -> Node:
    """The owner vouches for the key; if its proof has passed, the node is in the market."""
    verification.confirm_fingerprint(node, fingerprint, by=by, now=now)
    tasks.ring(tasks.clear_market)
    return node


def drain(node: Node, *, by: User, now: datetime) -> Node:
    """Takes the machine back: what runs leaves within the notice that its offer promised."""
    services.drain(node, by=by, now=now)
    watch.reclaim(node, why="its owner drains it", now=now)
    return node


def undrain(node: Node, *, by: User, now: datetime) -> Node:
    """Lets the machine again."""
    services.undrain(node, by=by, now=now)
    tasks.ring(tasks.clear_market)
    return node


def retire(node: Node, *, at_once: bool, by: User, now: datetime) -> Node:
    """Ends the node and revokes its key.

    While jobs still run on it, only `at_once`: they lose what they have not saved. Raises
    Conflict then, InvalidTransition if it is retired already.
    """
    running = Assignment.objects.on(node).wanted().filter(gone_at=None).count()
    if running and not at_once:
        raise Conflict(
            f"{running} job(s) still run on {node}: drain it first, so that they can save; or "
            "retire it at once if its key is in other hands"
        )
    watch.reclaim(node, why="its owner retires it", now=now)
    services.retire(node, reason="its owner retires it", by=by, now=now)
    # It isn't heard any more: what ran there is lost, and its devices are free for another node.
    assignments.report(node, [], boot_id=node.boot_id, now=now)
    telemetry.node_changed(node.pk)
    return node


def offer(node: Node, terms: offers.Terms, *, by: User, now: datetime) -> Offer:
    """Offers the node anew, and lets the market look at it."""
    made = offers.create_offer(node, terms, by=by, now=now)
    tasks.ring(tasks.clear_market)
    return made


def resume(paused: Offer, *, by: User, now: datetime) -> Offer:
    """Opens a paused offer, and lets the market look at it."""
    offers.resume(paused, by=by, now=now)
    tasks.ring(tasks.clear_market)
    return paused
