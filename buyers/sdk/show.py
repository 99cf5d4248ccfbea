"""How the command line shows things: tables, a run as it goes, a receipt."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from buyers.sdk.shapes import MICRO, Dataset, Job, JobRow, Quote, Receipt, Update

_SPARKS: Final = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH: Final = 32


def money(micros: int) -> str:
    """`1_250_000` as "$1.25", with as many more places, up to six, as it needs."""
    whole, part = divmod(abs(micros), MICRO)
    places = f"{part:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if micros < 0 else ''}${whole:,}.{places}"


def size(count: float) -> str:
    """Bytes in the unit that reads best."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """3,725 s as "1 h 2 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def plain(text: str) -> Text:
    """Somebody else's words: no markup, no escape sequences that could steer the terminal."""
    kept = "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)
    return Text(kept)


SCRIPT_NOTE: Final = (
    "If its machine is taken away, a script goes on elsewhere from the newest checkpoint that it "
    "wrote, which it has to load by itself; one that saves nothing begins anew. What ran in vain "
    "through a machine's or its owner's fault is credited."
)


def quote(found: Quote, *, recipe: str = "") -> Table:
    """The options, best first; for scripts with what an interruption means."""
    table = _table("#", "Where", "On", "Per GPU-hour", "Time", "Cost in all", "Energy", "")
    for option in found.options:
        times = f"{duration(option.seconds_low)} to {duration(option.seconds_high)}"
        costs = f"{money(option.total)} ({money(option.total_low)} to {money(option.total_high)})"
        table.add_row(
            str(option.index),
            plain(f"{option.node}, {option.site} ({option.region}, {option.supplier})"),
            f"{option.gpus} × {option.gpu_class}",
            money(option.price_micros),
            times if option.fits else "",
            costs if option.fits else "",
            f"{option.kwh:.3f} kWh" if option.fits else "",
            plain(option.why),
            style="" if option.fits else "dim",
        )
    table.caption = SCRIPT_NOTE if recipe == "script" else None
    return table


def jobs(rows: Sequence[JobRow]) -> Table:
    """A list of jobs."""
    table = _table("Id", "Name", "State", "Recipe", "Progress", "Spent", "Budget")
    for row in rows:
        progress = f"{row.step} / {row.total_steps}" if row.total_steps else str(row.step or "")
        table.add_row(str(row.id), plain(row.name), row.state, row.recipe, progress,
                      money(row.spent_micros), money(row.budget_micros))  # fmt: skip
    return table


def datasets(rows: Sequence[Dataset]) -> Table:
    """A list of versions."""
    table = _table("Name", "Version", "Files", "Rows", "Size", "State")
    for row in rows:
        table.add_row(plain(row.name), str(row.version), f"{row.files:,}", f"{row.rows:,}",
                      size(row.bytes), "committed" if row.committed_at else "begun")  # fmt: skip
    return table


def job(found: Job) -> Table:
    """One job in facts."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("Job", plain(found.name))
    table.add_row("Id", str(found.id))
    table.add_row("State", plain(found.words))
    if found.total_steps:
        table.add_row("Progress", f"step {found.step} of {found.total_steps}")
    for node in found.nodes:
        table.add_row("Where", plain(f"{node.node}, {node.site} ({node.region}, {node.supplier})"))
    if found.lease:
        price = money(found.lease.price_micros)
        table.add_row("Price", f"{price} per GPU-hour on {found.lease.gpu_class}")
    table.add_row("Spent", f"{money(found.spent_micros)} of {money(found.budget_micros)}")
    if found.artifact:
        table.add_row("Model", f"gridloom download {found.id}")
    return table


def receipt(found: Receipt) -> Table:
    """What ran, at which price, and who got what of it."""
    table = _table("Node", "GPU-seconds", "Per GPU-hour", "Charged", "Take", "Supplier", "Energy")
    for line in found.lines:
        table.add_row(
            plain(f"{line.node} ({line.supplier})"), f"{line.gpu_seconds:,}",
            money(line.price_micros), money(line.charge_micros),
            f"{money(line.fee_micros)} ({line.take_bps / 100:g} %)", money(line.earnings_micros),
            f"{line.kwh:.4f} kWh, {line.g_co2:.1f} g CO₂",
        )  # fmt: skip
        for credit in line.credits:
            reason = plain(f"credit: {credit.reason}")
            table.add_row(reason, "", "", money(-credit.micros), "", "", "", style="dim")
    energy = f"{found.kwh:.4f} kWh{', estimated' if found.estimated else ''}"
    table.add_section()
    table.add_row("In all", f"{found.gpu_seconds:,}", "", money(found.total_micros),
                  money(found.fees_micros), money(found.earnings_micros), energy)  # fmt: skip
    return table


@contextlib.contextmanager
def watching(console: Console) -> Iterator[Callable[[Update], None]]:
    """A live view: progress, loss, cost. Where there is no terminal, a line per change."""
    bar = Progress(TextColumn("steps"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn())
    task = bar.add_task("steps", total=None)
    losses: list[float] = []
    said = [""]

    def show(update: Update, live: Live) -> None:
        job = update.job
        losses.extend(point["loss"] for point in update.points if "loss" in point)
        bar.update(task, completed=job.step, total=job.total_steps or None)
        loss = f"loss {losses[-1]:.3f}  {spark(losses)}\n" if losses else ""
        cost = f"cost {money(job.spent_micros)} of {money(job.budget_micros)}"
        live.update(Group(plain(job.words), bar, Text(loss + cost)))
        if not console.is_terminal and job.words != said[0]:
            said[0] = job.words
            console.print(plain(f"{job.words} ({cost})"))

    with Live(Text(""), console=console, refresh_per_second=4, transient=False) as live:
        yield lambda update: show(update, live)


def spark(values: Sequence[float]) -> str:
    """The last values as a line of blocks."""
    shown = values[-_SPARK_WIDTH:]
    low, high = min(shown), max(shown)
    scale = (len(_SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_SPARKS[round((value - low) * scale)] for value in shown)


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(heading)
    return table
