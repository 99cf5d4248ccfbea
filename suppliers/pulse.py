"""Whether the market itself was listening: silence of a node counts only while it was.

Each process that holds nodes' sockets writes its row each second, after it has flushed what it
heard. A row that stops, or starts anew, is a time in which nodes may have spoken unheard.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from django.db import connection

from suppliers.models import Pulse


def beat(process: str, *, now: datetime, gap_s: float) -> None:
    """Notes that `process` listens; a pause of more than `gap_s` starts its gapless time anew."""
    values: dict[str, str | datetime | float] = {"process": process, "now": now, "gap": gap_s}
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO suppliers_pulse AS p (process, at, gapless_since)
            VALUES (%(process)s, %(now)s, %(now)s)
            ON CONFLICT (process) DO UPDATE SET
                at = greatest(p.at, excluded.at),
                gapless_since = CASE WHEN excluded.at - p.at > make_interval(secs => %(gap)s)
                    THEN excluded.at ELSE p.gapless_since END
            """,
            values,
        )


def listening_since(*, now: datetime, gap_s: float) -> datetime | None:
    """Since when all nodes could be heard without a gap; None if nobody listens now.

    A process that has stopped left a gap when it stopped: its nodes had to find another one.
    """
    return _since(list(Pulse.objects.all()), now - timedelta(seconds=gap_s))


def forget(*, before: datetime) -> None:
    """Removes the rows of processes that stopped before then."""
    Pulse.objects.filter(at__lt=before).delete()


def _since(pulses: Sequence[Pulse], alive_from: datetime) -> datetime | None:
    if all(pulse.at < alive_from for pulse in pulses):
        return None
    return max(p.gapless_since if p.at >= alive_from else p.at for p in pulses)
