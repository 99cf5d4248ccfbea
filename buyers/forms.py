"""What buyers type. Only its shape is checked here; what it means, by the services."""

import json
from typing import Any

from django import forms

from agent.recipes import catalog
from buyers.models import Artifact, Dataset
from marketplace.core.errors import Invalid, MarketError
from marketplace.core.hardware import REGIONS, Trust
from marketplace.models import Org

_NONE = [("", "–")]


class RefusableForm(forms.Form):
    """A form that can also show why a service said no."""

    def refuse(self, error: MarketError) -> None:
        """Puts the service's words beside the field at fault, or above them all."""
        field = error.field.partition(".")[0] if isinstance(error, Invalid) else ""
        field = {"limits": "limit"}.get(field, field)
        self.add_error(field if field in self.fields else None, str(error))


class TopUpForm(RefusableForm):
    """How much money to bring in."""

    amount = forms.CharField(
        max_length=30, initial="25.00", label="Amount, $", help_text="Paid by card, on Stripe"
    )


class BidForm(RefusableForm):
    """A quote's job, left to the rounds at a limit."""

    limit = forms.CharField(
        max_length=30,
        label="Most you pay per GPU-hour, $",
        help_text="The rounds, every few seconds, find it the best place for that or less",
    )


class ResumeForm(RefusableForm):
    """A stopped job again, perhaps with more money."""

    budget = forms.CharField(
        max_length=30, required=False, label="New budget in all, $ (empty: as it is)"
    )


class JobForm(RefusableForm):
    """A job as wanted. Empty fields are the market's to fill in."""

    name = forms.CharField(max_length=100, required=False)
    recipe = forms.ChoiceField()
    base = forms.ChoiceField(required=False, help_text="The model to start from")
    dataset = forms.ChoiceField(required=False)
    script = forms.ChoiceField(required=False, help_text="Your own code, for the recipe script")
    parameters = forms.CharField(
        required=False,
        widget=forms.Textarea(attrs={"rows": 4, "spellcheck": "false"}),
        help_text="One a line, like steps = 100 or args = [&quot;--fast&quot;]; the rest keep "
        "their defaults",
    )
    budget = forms.CharField(
        max_length=30, label="Budget, $", help_text="Never a cent over: it saves and stops there"
    )
    limit = forms.CharField(
        max_length=30,
        required=False,
        label="Most per GPU-hour, $",
        help_text="Empty: whatever lets it finish within the budget",
    )
    gpus = forms.IntegerField(initial=1, min_value=1, label="GPUs")
    level = forms.ChoiceField(
        required=False,
        choices=[("node", "In one node"), ("site", "Over the nodes of one site")],
        label="How far apart",
    )
    memory_gib = forms.FloatField(
        required=False, label="Memory on each GPU, GiB", help_text="Empty: estimated from the base"
    )
    hours = forms.FloatField(
        required=False, label="Hours it will about run", help_text="Only scripts need it"
    )
    disk_gib = forms.FloatField(initial=20, label="Disk, GiB")
    regions = forms.MultipleChoiceField(
        required=False, choices=[(name, name) for name in REGIONS], help_text="None: anywhere"
    )
    trust = forms.ChoiceField(
        choices=[(level.name.lower(), level.name.capitalize()) for level in reversed(Trust)],
        label="Least trust in the site",
    )

    def __init__(self, data: Any = None, *, org: Org) -> None:
        super().__init__(data)
        bases = Artifact.objects.usable_by(org).order_by("-public", "-created_at")[:100]
        folders = Dataset.objects.of(org).committed().order_by("name", "-version").distinct("name")
        named = [(str(folder.pk), str(folder)) for folder in folders[:200]]
        self._choose("recipe", [(name, name) for name in catalog.names()])
        self._choose("base", _NONE + [(str(base.pk), base.name) for base in bases])
        self._choose("dataset", _NONE + named)
        self._choose("script", _NONE + named)

    def clean_parameters(self) -> dict[str, Any]:
        """Lines of `name = value`; a value is JSON, or else text."""
        found: dict[str, Any] = {}
        for line in self.cleaned_data["parameters"].splitlines():
            name, equals, value = (part.strip() for part in line.partition("="))
            if not line.strip():
                continue
            if not name or not equals:
                raise forms.ValidationError(f"write it like steps = 100, not {line[:60]!r}")
            try:
                found[name] = json.loads(value)
            except ValueError:
                found[name] = value
        return found

    def raw(self) -> dict[str, Any]:
        """What was typed, for `marketplace.core.specs.parse`."""
        return {name: value for name, value in self.cleaned_data.items() if value is not None}

    def _choose(self, name: str, choices: list[tuple[str, str]]) -> None:
        field = self.fields[name]
        assert isinstance(field, forms.ChoiceField)
        field.choices = choices
