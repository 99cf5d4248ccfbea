"""How the command line shows things: tables, a run as it goes, a receipt."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from buyers.sdk.job_shapes import Job, JobRow, Quote, Receipt, Update
from buyers.sdk.shapes import (
    MICRO,
    Base,
    Dataset,
    Measured,
    Recipe,
    Report,
)

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


def energy(kwh: float) -> str:
    """Kilowatt-hours in the unit that reads best: "1.25 kWh", "3.1 Wh", "0.05 Wh"."""
    if kwh >= 0.1 or not kwh:
        return f"{kwh:,.2f} kWh"
    return f"{kwh * 1000:.1f} Wh" if kwh >= 0.001 else f"{kwh * 1000:.2g} Wh"


def carbon(grams: float) -> str:
    """Grams of CO2: "1.2 kg CO₂", "31 g CO₂", "0.02 g CO₂"."""
    if grams >= 1000:
        return f"{grams / 1000:,.1f} kg CO₂"
    return f"{grams:.0f} g CO₂" if grams >= 10 or not grams else f"{grams:.2g} g CO₂"


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
            _with_premium(option.price_micros, option.premium_micros),
            times if option.fits else "",
            costs if option.fits else "",
            energy(option.kwh) if option.fits else "",
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
                      size(row.bytes), row.state)  # fmt: skip
    return table


def bases(rows: Sequence[Base]) -> Table:
    """The models to start from."""
    table = _table("Name", "Revision", "Size", "Licence", "Id")
    for row in rows:
        licence = row.licence or "none named"
        table.add_row(
            plain(row.name), row.source.rpartition("@")[2][:12], size(row.bytes),
            plain(licence if row.accepted else f"{licence}, to be accepted"), str(row.id),
        )  # fmt: skip
    return table


def report(found: Report) -> Iterator[Text]:
    """A dataset's state, and the first rows of its parts."""
    kinds = f" of {' or '.join(found.kinds)}" if found.kinds else ""
    yield plain(f"{found.name}@{found.version}: {found.state}, {found.rows:,} rows{kinds}")
    if found.detail:
        yield plain(found.detail)
    for name, part in found.parts.items():
        yield plain(f"{name}: {part.rows:,} rows")
        for row in part.first:
            yield plain(f"  {json.dumps(row, ensure_ascii=False)}")


def recipes(found: Mapping[str, Recipe]) -> Table:
    """All recipes, a line each."""
    table = _table("Recipe", "Reads", "What it does")
    for name, recipe in found.items():
        reads = ", ".join(
            each.name if each.required else f"[{each.name}]" for each in recipe.inputs
        )
        table.add_row(
            name, Text(reads), plain(recipe.about.splitlines()[0] if recipe.about else "")
        )
    return table


def recipe(name: str, found: Recipe) -> Iterator[Text | Table]:
    """One recipe's inputs and parameters."""
    yield plain(f"{name}: {found.about}")
    for each in found.inputs:
        yield plain(f"  {each.name}{'' if each.required else ' (optional)'}: {each.help}")
    table = _table("Parameter", "Default", "Allowed", "What it does")
    for parameter, spec in found.parameters.get("properties", {}).items():
        default = json.dumps(spec["default"]) if "default" in spec else ""
        table.add_row(parameter, Text(default), Text(_allowed(spec)),
                      plain(str(spec.get("description", ""))))  # fmt: skip
    yield table


def measured(rows: Sequence[Measured]) -> Table:
    """What a model could do before and after; what dropped is red."""
    table = _table("Measured on", "By", "Rows", "Before", "After", "Margin", "Verdict")
    for row in rows:
        before, after = (
            "" if value is None else f"{value:.3f}" for value in (row.before, row.after)
        )
        table.add_row(
            plain(row.name), row.measure, f"{row.rows:,}", before, after, f"{row.margin:.0%}",
            "dropped" if row.dropped else "kept", style="red" if row.dropped else "",
        )  # fmt: skip
    return table


def job(found: Job) -> Table:
    """One job in facts."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("Job", plain(found.name))
    table.add_row("Id", str(found.id))
    table.add_row("State", plain(found.words))
    if found.total_steps:
        table.add_row("Progress", f"step {found.step} of {found.total_steps}")
    for number, change in enumerate(found.told.changes if found.told else ()):
        table.add_row("" if number else "What would place it", plain(f"{number} {change.words}"))
    for node in found.nodes:
        table.add_row("Where", plain(f"{node.node}, {node.site} ({node.region}, {node.supplier})"))
    if found.lease:
        price = _with_premium(found.lease.price_micros, found.lease.premium_micros)
        table.add_row("Price", f"{price} per GPU-hour on {found.lease.gpu_class}")
    premium = f", at a premium of {found.premium_bps / 100:g} %" if found.premium_bps else ""
    table.add_row("Service", f"{found.service}{premium}")
    table.add_row("Spent", f"{money(found.spent_micros)} of {money(found.budget_micros)}")
    if found.artifact:
        table.add_row("Model", f"gridloom download {found.id}")
    return table


def receipt(found: Receipt) -> Table:
    """What ran, at which price, and who got what of it: lines that read at any width."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for line in found.lines:
        per_hour = money(line.price_micros - line.premium_micros)
        price = f"{line.gpu_seconds:,} GPU-seconds at {per_hour} per GPU-hour"
        unprotected = money(line.charge_micros - line.premium_charged_micros)
        table.add_row(plain(f"{line.node} ({line.supplier})"), price, unprotected)
        if found.premium_bps:
            more = f"premium for protection, {money(line.premium_micros)} per GPU-hour"
            table.add_row("", more, money(line.premium_charged_micros))
        for credit in line.credits:
            reason = plain(f"credit: {credit.reason}")
            table.add_row("", reason, money(-credit.micros), style="dim")
    table.add_section()
    rates = sorted({line.take_bps for line in found.lines})
    take = " and ".join(f"{rate / 100:g} %" for rate in rates)
    table.add_row("In all", f"{found.gpu_seconds:,} GPU-seconds", money(found.total_micros),
                  style="bold")  # fmt: skip
    table.add_row("  of it", "the supplier's earnings", money(found.earnings_micros))
    table.add_row("  of it", f"the take ({take})" if take else "the take", money(found.fees_micros))
    grams = sum(line.g_co2 for line in found.lines)
    estimated = ", estimated: nothing here measures power" if found.estimated else ""
    table.add_row("Energy", f"{energy(found.kwh)}, {carbon(grams)}{estimated}", "")
    return table


def _with_premium(price: int, premium: int) -> str:
    return f"{money(price)} ({money(premium)} of it premium)" if premium else money(price)


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


def _allowed(spec: Mapping[str, Any]) -> str:
    """In words, what a parameter's JSON Schema allows."""
    if "enum" in spec:
        return ", ".join(map(str, spec["enum"]))
    if "maximum" in spec:
        low = (
            f"above {spec['exclusiveMinimum']:g}"
            if "exclusiveMinimum" in spec
            else spec.get("minimum", "")
        )
        return f"{low} to {spec['maximum']:,}"
    return str(spec.get("type", "JSON"))


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(heading)
    return table
