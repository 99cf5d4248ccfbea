"""`python -m marketplace.devstack up | services | demo`: see `make help`."""

import sys
import time
from collections.abc import Callable

from rich.console import Console

from marketplace.devstack.live import LiveSite, live_services, live_site
from marketplace.devstack.process import StackError
from marketplace.devstack.stack import DATA

_console = Console(highlight=False)
_USAGE = "usage: python -m marketplace.devstack up | services | demo"


def main(arguments: list[str]) -> int:
    """Runs one command; 0 if it ended as it should, by itself or by Ctrl-C."""
    commands: dict[str, Callable[[], int]] = {"up": _up, "services": _services, "demo": _demo}
    if len(arguments) != 1 or arguments[0] not in commands:
        print(_USAGE, file=sys.stderr)
        return 2
    try:
        return commands[arguments[0]]()
    except StackError as error:
        _console.print(f"[bold red]It stopped here.[/] {error}", soft_wrap=True, markup=True)
        return 1
    except KeyboardInterrupt:
        return 0 if arguments[0] != "demo" else 130


def _up() -> int:
    """The whole site, with two nodes, until Ctrl-C."""
    began = time.monotonic()
    _say("Starting the site …")
    with live_site(DATA, _say) as site:
        _print_accounts(site)
        site.start_nodes(_say)
        _say(f"Everything runs after {time.monotonic() - began:.1f} s. [bold]Ctrl-C[/] stops it.")
        return _until_interrupted(site)


def _services() -> int:
    """Only what the site stands on, for someone who runs the rest by hand."""
    with live_services(DATA, _say) as site:
        _say("The services run. For a shell that uses them:")
        for name, value in sorted(site.stack.environment().items()):
            print(f"export {name}='{value}'")
        return _until_interrupted(site)


def _demo() -> int:
    # It is the largest part of this package, and the other commands don't need it.
    from marketplace.devstack import demo

    return demo.main()


def _until_interrupted(site: LiveSite) -> int:
    try:
        site.supervisor.watch()
    except KeyboardInterrupt:
        _say("Stopping, in order …")
    return 0


def _print_accounts(site: LiveSite) -> None:
    _say(f"\nThe site: [bold]{site.stack.site_url}[/]")
    for account in site.accounts:
        key = f"  API key {account['key']}" if account["key"] else ""
        print(f"  {account['role']:10} {account['email']:28} {account['password']}{key}")
    print()


def _say(text: str) -> None:
    _console.print(text, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
