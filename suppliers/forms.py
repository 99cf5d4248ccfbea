"""What suppliers type. Only its shape is checked here; what it means, by the services."""

import re
from typing import Any, Final

from django import forms

from marketplace.core.hardware import REGIONS, Network
from marketplace.core.money import MICRO, format_amount
from marketplace.core.windows import WEEK_MINUTES
from marketplace.forms import RefusableForm
from suppliers.models import Offer, Site
from suppliers.offers import Terms
from suppliers.services import SiteFacts

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIME: Final = rf"({'|'.join(_DAYS)})\w*\s+(\d{{1,2}}):(\d\d)"
_WINDOW: Final = re.compile(rf"{_TIME}\s*(?:-|–|to)\s*{_TIME}", re.IGNORECASE)


class SiteForm(RefusableForm):
    """One network and one energy meter."""

    name = forms.CharField(max_length=60, help_text="A rack, a lab, a flat")
    region = forms.ChoiceField(choices=[(name, name) for name in REGIONS])
    network = forms.ChoiceField(
        choices=[(kind.name.lower(), kind.name.capitalize()) for kind in Network],
        initial="ethernet",
        label="Network between its nodes",
    )
    uplink_mbps = forms.FloatField(initial=100, min_value=0.1, label="Uplink, Mbit/s")
    tariff = forms.DecimalField(
        initial="0.25", min_value=0, max_digits=8, decimal_places=6, label="Power, $ per kWh"
    )
    carbon_g_per_kwh = forms.FloatField(initial=300, min_value=0, label="Grid, g CO₂ per kWh")
    pue = forms.FloatField(
        initial=1.0,
        min_value=1,
        max_value=5,
        label="PUE",
        help_text="Power at the meter over power of the machines; 1.0 at home",
    )

    @classmethod
    def of(cls, site: Site, data: Any = None) -> "SiteForm":
        """A form that begins with what the site has."""
        return cls(
            data,
            initial={
                "name": site.name,
                "region": site.region,
                "network": Network(site.network).name.lower(),
                "uplink_mbps": site.uplink_mbps,
                "tariff": format_amount(site.tariff_micros_per_kwh).replace(",", ""),
                "carbon_g_per_kwh": site.carbon_g_per_kwh,
                "pue": site.pue,
            },
        )

    def facts(self) -> SiteFacts:
        """What was typed, for the services."""
        data = self.cleaned_data
        return SiteFacts(
            name=data["name"],
            region=data["region"],
            network=Network[data["network"].upper()],
            uplink_mbps=data["uplink_mbps"],
            tariff_micros_per_kwh=int(data["tariff"] * MICRO),
            carbon_g_per_kwh=data["carbon_g_per_kwh"],
            pue=data["pue"],
        )


class TokenForm(RefusableForm):
    """A way in for one node now, or for a cluster over some days."""

    nodes = forms.IntegerField(initial=1, min_value=1, max_value=1000, label="Machines")
    days = forms.IntegerField(
        required=False,
        min_value=1,
        max_value=30,
        label="Days it is good for",
        help_text="Empty: a quarter of an hour",
    )


class FingerprintForm(RefusableForm):
    """What the owner reads off the machine's own screen."""

    fingerprint = forms.CharField(
        max_length=60,
        label="Fingerprint",
        help_text="As `enroll` printed it on the machine: eight groups of four digits and letters",
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )


class OfferForm(RefusableForm):
    """What a node is let at, to whom, and when."""

    ask = forms.CharField(
        max_length=20,
        label="You get, $ per GPU-hour",
        help_text="Buyers see it with the market's share on top",
    )
    notice_s = forms.IntegerField(
        initial=60,
        min_value=0,
        max_value=86_400,
        label="Notice, seconds",
        help_text="From your wanting the machine back to having it; longer earns more trust",
    )
    audience = forms.ChoiceField(choices=Offer.Audience, label="Who may rent it")
    scripts = forms.BooleanField(required=False, initial=True, label="Buyers' own scripts may run")
    windows = forms.CharField(
        required=False,
        label="Hours, UTC",
        widget=forms.Textarea(attrs={"rows": 3, "placeholder": "Mon 18:00 - Tue 08:00"}),
        help_text="One span a line; empty means always",
    )

    def clean_windows(self) -> list[list[int]]:
        """Spans as minutes of the week; one over Sunday midnight becomes two."""
        spans: list[list[int]] = []
        for line in self.cleaned_data["windows"].splitlines():
            if line.strip():
                spans += _span(line.strip())
        return spans

    def terms(self) -> Terms:
        """What was typed, for the services."""
        return Terms(**self.cleaned_data)


def write_windows(windows: list[list[int]]) -> str:
    """Windows as a person writes them, a line each."""
    return "\n".join(f"{_moment(start)} - {_moment(end)}" for start, end in windows)


def _span(line: str) -> list[list[int]]:
    match = _WINDOW.fullmatch(line)
    if match is None:
        raise forms.ValidationError(f"“{line}” isn't like “Mon 18:00 - Tue 08:00”")
    parts = match.groups()
    start, end = _minute(*parts[:3]), _minute(*parts[3:])
    if start < end:
        return [[start, end]]
    return [[start, WEEK_MINUTES], *([[0, end]] if end else [])]


def _minute(day: str, hour: str, minute: str) -> int:
    if int(hour) > 24 or int(minute) > 59 or (int(hour) == 24 and int(minute)):
        raise forms.ValidationError(f"{hour}:{minute} is not a time of day")
    whole = _DAYS.index(day.lower()) * 1440 + int(hour) * 60 + int(minute)
    return whole % WEEK_MINUTES


def _moment(minute: int) -> str:
    day, rest = divmod(minute % WEEK_MINUTES, 1440)
    return f"{_DAYS[day].capitalize()} {rest // 60:02}:{rest % 60:02}"
