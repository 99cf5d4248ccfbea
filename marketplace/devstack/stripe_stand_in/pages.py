"""The hosted pages: where a person pays, and where a supplier sets up their account."""

from html import escape
from string import Template
from typing import Final

from marketplace.devstack.stripe_stand_in.accounts import link_of, onboard
from marketplace.devstack.stripe_stand_in.calls import Call
from marketplace.devstack.stripe_stand_in.checkout import (
    back_to,
    lines_of,
    pay_session,
    require_open,
)
from marketplace.devstack.stripe_stand_in.errors import StripeError

_SYMBOLS: Final = {"usd": "$", "eur": "€", "gbp": "£", "chf": "CHF "}


def checkout_page(call: Call, pk: str, *, error: str = "") -> str:
    """The payment form; raises StripeError for a session that can't be paid any more."""
    session = call.find("checkout.session", pk)
    require_open(session)
    total = _money(session["amount_total"], session["currency"])
    lines = "".join(
        f"<li><span>{escape(line['description'])}</span>"
        f"<span>{_money(line['amount_total'], line['currency'])}</span></li>"
        for line in lines_of(call, session)["data"]
    )
    cancel = session["cancel_url"]
    back = f'<a class="back" href="{escape(cancel)}">Cancel and go back</a>' if cancel else ""
    return _page(
        f"Pay {total}",
        _CHECKOUT.substitute(
            total=total, lines=lines, back=back, error=_alert(error),
            email=escape(session["customer_email"] or ""),
        ),
    )  # fmt: skip


def pay(call: Call, pk: str) -> str:
    """Pays with the form's card; returns where to send the browser. Raises StripeError."""
    params = call.params
    session = pay_session(
        call, pk,
        number=params.text("number"), name=params.text("name"), email=params.text("email"),
    )  # fmt: skip
    return back_to(session, session["success_url"])


def setup_page(call: Call, token: str, *, error: str = "") -> str:
    """The onboarding form; raises StripeError for an unknown link."""
    account = call.store.find("account", link_of(call, token)["account"])
    return _page(
        "Set up your payouts",
        _SETUP.substitute(account=escape(account["id"]), error=_alert(error)),
    )


def expired_link(call: Call, token: str) -> str:
    """Where an outdated account link sends the browser; empty while it is good."""
    link = link_of(call, token)
    return str(link["refresh_url"]) if call.now > link["expires_at"] else ""


def set_up(call: Call, token: str) -> str:
    """Fills in the account; returns where to send the browser. Raises StripeError."""
    link = link_of(call, token)
    params = call.params
    onboard(call, link["account"], name=params.required("name"), number=params.text("number"))
    return str(link["return_url"])


def error_page(error: StripeError) -> str:
    return _page("That didn't work", f"<main><h1>That didn't work</h1>{_alert(str(error))}</main>")


def _money(amount: int, currency: str) -> str:
    return f"{_SYMBOLS[currency]}{amount / 100:,.2f}"


def _alert(message: str) -> str:
    return f'<p class="alert" role="alert">{escape(message)}</p>' if message else ""


def _page(title: str, body: str) -> str:
    return _FRAME.substitute(title=escape(title), body=body)


_FRAME: Final = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title · test stand-in</title>
<style>
:root { color-scheme: light dark; --ink: #1a1f36; --soft: #5a6178; --line: #d5dae3;
  --paper: #fff; --ground: #f4f6fa; --accent: #3949c7; --warn: #8a4b00; --warnbg: #fff4dc; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaf2; --soft: #a5adc4; --line: #3a4054;
  --paper: #1c2030; --ground: #12141f; --accent: #8f9bff; --warn: #ffd699; --warnbg: #3a2c10; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
.banner { background: var(--warnbg); color: var(--warn); text-align: center; padding: .6rem 1rem;
  font-weight: 600; }
main { width: min(26rem, 100% - 1rem); margin: 2rem auto; padding: 2rem; background: var(--paper);
  border: 1px solid var(--line); border-radius: 12px; }
h1 { font-size: 1.1rem; font-weight: 600; margin: 0; color: var(--soft); }
.total { font-size: 2.4rem; font-weight: 700; margin: .2rem 0 1rem; }
ul { list-style: none; padding: 0; margin: 0 0 1.5rem; border-top: 1px solid var(--line); }
li { display: flex; justify-content: space-between; gap: 1rem; padding: .7rem 0;
  border-bottom: 1px solid var(--line); }
label { display: block; font-size: .9rem; font-weight: 600; margin-top: 1rem; }
input { width: 100%; font: inherit; font-weight: 400; padding: .6rem .7rem; margin-top: .25rem; color: inherit;
  background: transparent; border: 1px solid var(--line); border-radius: 8px; }
.row { display: grid; grid-template-columns: 1fr 1fr; gap: .8rem; }
button { width: 100%; font: inherit; font-weight: 700; margin-top: 1.6rem; padding: .8rem;
  border: 0; border-radius: 8px; background: var(--accent); color: var(--paper);
  cursor: pointer; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.alert { background: #b3261e; color: #fff; padding: .7rem .9rem; border-radius: 8px; }
.hint { color: var(--soft); font-size: .85rem; margin: 1.4rem 0 0; }
.back { display: block; text-align: center; margin-top: 1rem; color: var(--soft); }
code { font-size: .95em; }
</style></head>
<body><div class="banner">Test stand-in, no real money</div>
$body
</body></html>
""")

_CHECKOUT: Final = Template("""<main>
<h1>Amount to pay</h1>
<p class="total">$total</p>
<ul>$lines</ul>
$error
<form method="post">
<label>Email <input name="email" type="email" autocomplete="off" value="$email"></label>
<label>Card number <input name="number" inputmode="numeric" autocomplete="off" required
  value="4242 4242 4242 4242"></label>
<div class="row">
<label>Expiry <input name="expiry" value="12 / 34" autocomplete="off" required></label>
<label>CVC <input name="cvc" inputmode="numeric" value="123" autocomplete="off" required></label>
</div>
<label>Name on card <input name="name" value="Test Person" autocomplete="off" required></label>
<button type="submit">Pay $total</button>
</form>
$back
<p class="hint">Never type a real card here. <code>4242 4242 4242 4242</code> pays,
<code>4000 0000 0000 0002</code> is declined, <code>4000 0000 0000 0259</code> pays and is
disputed, <code>4000 0000 0000 0077</code> pays and the money is available at once.</p>
</main>""")

_SETUP: Final = Template("""<main>
<h1>Set up your payouts</h1>
<p>Account <code>$account</code></p>
$error
<form method="post">
<label>Name of the account's owner
<input name="name" value="Test Person" autocomplete="off" required></label>
<label>Bank account number
<input name="number" inputmode="numeric" autocomplete="off" required value="000123456789"></label>
<button type="submit">Agree and continue</button>
</form>
<p class="hint">Never type a real account here. <code>000123456789</code> takes payouts,
<code>000111111116</code> sends them back.</p>
</main>""")
