"""`python -m marketplace.devstack.stripe_stand_in --port 12111 --data DIR …` (0: any port)."""

import argparse
import logging
import os
import signal
import threading
from pathlib import Path

from marketplace.devstack.stripe_stand_in.calls import Config
from marketplace.devstack.stripe_stand_in.server import StandIn
from marketplace.devstack.stripe_stand_in.store import Store


def main() -> None:
    options = _parser().parse_args()
    logging.basicConfig(level=options.log_level, format="%(asctime)s %(levelname)s %(message)s")
    config = Config(
        secret_key=options.secret_key,
        webhook_secret=options.webhook_secret,
        webhook_url=options.webhook_url,
        settle_s=options.settle_s,
        available_s=options.available_s,
        payout_s=options.payout_s,
        retry_s=options.retry_s,
    )
    store = Store(options.data)
    try:
        server = StandIn(options.port, store, config)
    except OSError as error:
        raise SystemExit(f"port {options.port} can't be used ({error}); choose another") from None
    # `shutdown` waits for the loop, which runs in this very thread: it needs another.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"listening on {server.base_url}", flush=True)
    server.serve_until_stopped()
    store.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stripe_stand_in", description="A stand-in for Stripe. No real money."
    )
    default = Config(secret_key="", webhook_secret="")
    parser.add_argument("--port", type=int, required=True, help="0 chooses a free one")
    parser.add_argument("--data", type=Path, required=True, help="folder for its database")
    # A secret on the command line is everybody's to read; the environment is not.
    for name in ("secret-key", "webhook-secret"):
        variable = f"STRIPE_{name.replace('-', '_').upper()}"
        given = os.environ.get(variable)
        parser.add_argument(
            f"--{name}", default=given, required=not given, help=f"else from {variable}"
        )
    parser.add_argument("--webhook-url", default="", help="none: no webhooks are sent")
    parser.add_argument("--settle-s", type=float, default=default.settle_s)
    parser.add_argument("--available-s", type=int, default=default.available_s)
    parser.add_argument("--payout-s", type=float, default=default.payout_s)
    parser.add_argument("--retry-s", type=float, default=default.retry_s)
    parser.add_argument("--log-level", default="INFO")
    return parser


if __name__ == "__main__":
    main()
