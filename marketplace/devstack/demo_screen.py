"""What the demo shows: steps with their times, offers, a training run as it goes, the receipt."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from buyers.sdk import show
from buyers.sdk.job_shapes import Quote, Receipt, Update


class Screen:
    """The terminal. Falls back to plain lines where it is none."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._step = ""

    def title(self) -> None:
        """What this is."""
        self._console.print(Panel("[bold]Gridloom[/]: an idle machine, a job, a paid-for model"))

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
        self._console.print(Padding(show.quote(quote), (0, 0, 0, 4)))

    def training(self) -> contextlib.AbstractContextManager[Callable[[Update], None]]:
        """A live view of a run: progress, loss, cost."""
        return show.watching(self._console)

    def summary(
        self,
        *,
        evaluation: Mapping[str, Any],
        answer: str,
        receipt: Receipt,
        folder: Path,
    ) -> None:
        """What came of it: the model, the answers, the receipt."""
        target, sample = evaluation["domains"][0], evaluation["answers"][0]
        model = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        model.add_row("held-out loss", f"{target['before']:.3f} → [bold]{target['after']:.3f}[/]")
        model.add_row("asked", Text(sample["prompt"]))
        model.add_row("before", Text(sample["before"]))
        model.add_row("after", Text(answer, style="bold"))
        model.add_row("weights", str(folder))
        self._console.print(Panel(model, title="The model", title_align="left"))
        self._console.print(Panel(show.receipt(receipt), title="The receipt", title_align="left"))

    def done(self, seconds: float) -> None:
        """The last line of a good run."""
        self._console.print(f"[bold green]Done[/] in {seconds:.0f} s. The ledger's sum is 0.")

    def failed(self, why: str) -> None:
        """The last line of a bad one."""
        self._console.print(f"[bold red]Failed[/] at “{self._step}”: {why}", soft_wrap=True)
