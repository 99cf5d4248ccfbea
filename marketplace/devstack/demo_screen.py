"""What the demo shows: steps with their times, offers, a training run as it goes, the receipt."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from buyers.sdk import Quote, Receipt, Update

_SPARKS = "▁▂▃▄▅▆▇█"


def dollars(micros: int, places: int = 4) -> str:
    """Micros as dollars."""
    return f"${micros / 1e6:,.{places}f}"


class Screen:
    """The terminal. Falls back to plain lines where it is none."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._step = ""

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The whole of it."""
        self._console.print(Panel("[bold]Gridloom[/]: an idle machine, a job, a paid-for model"))
        with self.step("The market starts"):
            pass
        yield

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """One step; says how long it took once it is done."""
        began, self._step = time.monotonic(), title
        self._console.print(f"[bold cyan]▸[/] [bold]{title}[/]")
        yield
        self._console.print(f"  [green]✓[/] [dim]{time.monotonic() - began:.1f} s[/]")

    def note(self, text: str) -> None:
        """A line under the step."""
        self._console.print(Text(f"    {text}", style="default"), soft_wrap=True)

    def options(self, quote: Quote) -> None:
        """The quote's options, best first."""
        table = Table(box=None, padding=(0, 2, 0, 4))
        for heading in ("where", "price/h", "time", "cost in all", "energy", ""):
            table.add_column(heading, justify="left" if heading in ("where", "") else "right")
        for option in quote.options:
            table.add_row(
                f"{option.node} · {option.site} ({option.region})",
                dollars(option.price_micros),
                f"{option.seconds_low / 60:.1f}–{option.seconds_high / 60:.1f} min",
                f"{dollars(option.total_low)}–{dollars(option.total_high)}",
                f"{option.kwh * 1000:.1f} Wh, {option.g_co2:.1f} g CO2",
                "" if option.fits else option.why,
            )
        self._console.print(table)

    @contextlib.contextmanager
    def training(self) -> Iterator[Callable[[Update], None]]:
        """A live view of a run: progress, loss, cost."""
        progress = Progress(
            TextColumn("    {task.description}"),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        task = progress.add_task("steps", total=None)
        losses: list[float] = []
        words = Text("", style="dim")

        def show(update: Update) -> None:
            job = update.job
            losses.extend(
                point["loss"] for point in update.points if isinstance(point.get("loss"), float)
            )
            progress.update(task, completed=job.step, total=job.total_steps or None)
            loss = f"loss {losses[-1]:.3f} {_spark(losses)}   " if losses else ""
            words.plain = (
                f"    {job.words}\n    {loss}"
                f"cost {dollars(job.spent_micros)} of {dollars(job.budget_micros, 2)}"
            )

        with Live(Group(progress, words), console=self._console, refresh_per_second=5):
            yield show

    def summary(
        self,
        *,
        evaluation: Mapping[str, Any],
        answer: str,
        receipt: Receipt,
        folder: Path,
    ) -> None:
        """What came of it: the model, the answers, the receipt."""
        losses, sample = evaluation["held_out"], evaluation["answers"][0]
        model = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        model.add_row(
            "held-out loss", f"{losses['loss_before']:.3f} → [bold]{losses['loss_after']:.3f}[/]"
        )
        model.add_row("asked", Text(sample["prompt"]))
        model.add_row("before", Text(sample["before"]))
        model.add_row("after", Text(answer, style="bold"))
        model.add_row("weights", str(folder))
        self._console.print(Panel(model, title="The model", title_align="left"))
        self._console.print(Panel(_receipt(receipt), title="The receipt", title_align="left"))

    def done(self, seconds: float) -> None:
        """The last line of a good run."""
        self._console.print(f"[bold green]Done[/] in {seconds:.0f} s. The ledger's sum is 0.")

    def failed(self, why: str) -> None:
        """The last line of a bad one."""
        self._console.print(f"[bold red]Failed[/] at “{self._step}”: {why}", soft_wrap=True)


def _receipt(receipt: Receipt) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for line in receipt.lines:
        table.add_row(
            f"{line.node} ({line.supplier})",
            f"{line.gpu_seconds} GPU-seconds of {line.gpu_class} at {dollars(line.price_micros)}/h",
            dollars(line.charge_micros, 6),
        )
        for credit in line.credits:
            table.add_row("credit", credit.reason, f"-{dollars(credit.micros, 6)}")
    share = receipt.lines[0].take_bps / 100 if receipt.lines else 0
    energy = "estimated" if receipt.estimated else "measured"
    table.add_row("of it to the supplier", "", dollars(receipt.earnings_micros, 6))
    table.add_row("of it to Gridloom", f"take rate {share:g} %", dollars(receipt.fees_micros, 6))
    table.add_row("paid in all", "", f"[bold]{dollars(receipt.total_micros, 6)}[/]")
    table.add_row("energy", energy, f"{receipt.kwh:.6f} kWh, {receipt.g_co2:.2f} g CO2")
    return table


def _spark(values: list[float], width: int = 24) -> str:
    shown = values[-width:]
    low, high = min(shown), max(shown)
    scale = (len(_SPARKS) - 1) / (high - low) if high > low else 0
    return "".join(_SPARKS[round((value - low) * scale)] for value in shown)
