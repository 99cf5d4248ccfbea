"""What buyers type. Only its shape is checked here; what it means, by the services."""

import json
from collections.abc import Mapping
from typing import Any

from django import forms
from django.conf import settings

from agent.recipes import catalog
from buyers import recipes
from buyers.models import Artifact, Dataset
from buyers.own_models import Secret
from marketplace.core.errors import Invalid, MarketError
from marketplace.core.hardware import REGIONS, Trust
from marketplace.core.specs import SERVICES
from marketplace.forms import RefusableForm
from marketplace.models import Org

_NONE = [("", "–")]
# Inputs that are datasets or code; the others are models.
_OF_ROWS = frozenset({"dataset", "script", "mix"})


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


class SecretForm(RefusableForm):
    """A secret to keep."""

    name = forms.CharField(
        max_length=64, help_text="The variable that a job finds it in, like HF_TOKEN"
    )
    value = forms.CharField(
        max_length=8192,
        strip=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
    )
    trust = forms.ChoiceField(
        choices=[(level.name.lower(), level.name.capitalize()) for level in Trust],
        initial="verified",
        label="Only for sites at least",
        help_text="The owner of a machine can read what runs on it",
    )


class PromoteForm(RefusableForm):
    """Why a model that dropped somewhere shall be the current one."""

    reason = forms.CharField(max_length=250, required=False)


class BaseForm(RefusableForm):
    """A base to fetch from a hub."""

    repo = forms.CharField(
        max_length=200, label="Repository", help_text="Like HuggingFaceTB/SmolLM2-135M-Instruct"
    )
    revision = forms.CharField(
        max_length=200, required=False, help_text="A branch, a tag or a commit; empty: main"
    )
    hub = forms.ChoiceField(required=False)
    token = forms.CharField(
        max_length=500,
        required=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        label="Access token",
        help_text="Only for private or gated repositories; it is forgotten when the base is here",
    )
    right = forms.CharField(
        max_length=300,
        required=False,
        label="Why you may use it",
        help_text="Only if the repository names no licence; it is kept with your name",
    )

    def __init__(self, data: Any = None) -> None:
        super().__init__(data)
        field = self.fields["hub"]
        assert isinstance(field, forms.ChoiceField)
        field.choices = [(name, name) for name in settings.HUBS]


class ParameterForm(RefusableForm):
    """A recipe's parameters, made from the catalogue's schema. What is left empty keeps its
    default; bounds are the catalogue's to hold."""

    def __init__(
        self, recipe: str, data: Any = None, *, initial: Mapping[str, Any] | None = None
    ) -> None:
        found = recipes.recipe(recipe)
        given = initial or {}
        shown = {
            each.name: _shown(each, given.get(each.name, each.default)) for each in found.parameters
        }
        super().__init__(data, prefix="p", initial=shown)
        self._kinds = {each.name: each.kind for each in found.parameters}
        for each in found.parameters:
            self.fields[each.name] = _field(each)
        self.common = [self[each.name] for each in found.common]
        self.further = [self[each.name] for each in found.further]
        self.further_is_wrong = any(field.errors for field in self.further)

    def refuse(self, error: MarketError) -> None:
        """Puts the catalogue's words beside the parameter at fault."""
        name = error.field.partition(".")[2] if isinstance(error, Invalid) else ""
        self.add_error(name.partition(".")[0] if name in self.fields else None, str(error))

    def raw(self) -> dict[str, Any]:
        """What was given, for the catalogue to validate."""
        return {
            name: value
            for name, value in self.cleaned_data.items()
            if value not in ("", None, []) or self._kinds[name] == "switch"
        }


class LinesField(forms.CharField):
    """A list of texts, one a line."""

    widget = forms.Textarea(attrs={"rows": 3, "spellcheck": "false"})

    def clean(self, value: Any) -> list[str]:
        return [line.strip() for line in super().clean(value).splitlines() if line.strip()]


class JsonField(forms.CharField):
    """Anything else: JSON."""

    widget = forms.Textarea(attrs={"rows": 4, "spellcheck": "false"})

    def clean(self, value: Any) -> Any:
        text = super().clean(value)
        try:
            return json.loads(text) if text.strip() else ""
        except (ValueError, RecursionError) as error:
            raise forms.ValidationError(f"this is no JSON: {error}") from None


def _field(of: recipes.Parameter) -> forms.Field:
    allowed = "" if of.kind == "choice" else of.allowed
    helped = f"{of.help} {allowed.capitalize()}." if allowed else of.help
    said: dict[str, Any] = {"label": of.label, "help_text": helped, "required": of.required}
    match of.kind:
        case "choice":
            return forms.ChoiceField(choices=[(name, name) for name in of.choices], **said)
        case "switch":
            return forms.BooleanField(**{**said, "required": False})
        case "list":
            return LinesField(max_length=100_000, **said)
        case "json":
            return JsonField(max_length=100_000, **said)
        case "integer" | "number":
            # Not a number field: the browser would refuse 5e-4 by its step, and we say more.
            attrs = {"inputmode": "decimal", "autocomplete": "off"}
            return forms.CharField(max_length=40, widget=forms.TextInput(attrs=attrs), **said)
    return forms.CharField(max_length=10_000, **said)


def _shown(of: recipes.Parameter, value: Any) -> Any:
    if value is None:
        return ""
    if of.kind == "list" and isinstance(value, list):
        return "\n".join(map(str, value))
    if of.kind == "json" and not isinstance(value, str):
        return json.dumps(value) if value else ""
    return value


class JobForm(RefusableForm):
    """A job as wanted. Empty fields are the market's to fill in."""

    shown_by = {"limits": "limit"}

    name = forms.CharField(max_length=100, required=False)
    recipe = forms.ChoiceField()
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
    gpus_max = forms.IntegerField(
        required=False,
        min_value=1,
        label="Up to so many GPUs",
        help_text="Empty: just as many. A recipe takes what pays, and goes on with fewer if it must",
    )
    level = forms.ChoiceField(
        required=False,
        choices=[("node", "In one node"), ("site", "Over the nodes of one site")],
        label="How far apart",
    )
    memory_gib = forms.FloatField(
        required=False, label="Memory on each GPU, GiB", help_text="Empty: estimated from the base"
    )
    hours = forms.FloatField(
        required=False, label="Hours it will run, about", help_text="Only scripts need it"
    )
    disk_gib = forms.FloatField(initial=20, label="Disk, GiB")
    image = forms.CharField(
        max_length=200,
        required=False,
        label="Container image",
        help_text="Like ghcr.io/organisation/name:tag, open to all; empty: the node's own system",
    )
    egress = forms.CharField(
        max_length=2000,
        required=False,
        label="Names it must reach",
        help_text="Like huggingface.co .wandb.ai; empty: it reaches nothing. Not all owners let it",
    )
    secrets = forms.MultipleChoiceField(
        required=False, help_text="Given to it as variables, on sites that are trusted enough"
    )
    regions = forms.MultipleChoiceField(
        required=False, choices=[(name, name) for name in REGIONS], help_text="None: anywhere"
    )
    trust = forms.ChoiceField(
        choices=[(level.name.lower(), level.name.capitalize()) for level in reversed(Trust)],
        label="Least trust in the site",
    )
    service = forms.ChoiceField(
        required=False, choices=[(name, name.capitalize()) for name in SERVICES],
        help_text="Protected: the market never displaces it, and the price has a premium on it. "
        "Interruptible: no premium, and it may have to make room after ten minutes, saved first",
    )  # fmt: skip

    def __init__(
        self, recipe: str, data: Any = None, *, org: Org, initial: Mapping[str, Any] | None = None
    ) -> None:
        """`recipe` decides which inputs are asked for."""
        super().__init__(data, initial={"recipe": recipe, **(initial or {})})
        bases = Artifact.objects.usable_by(org).order_by("-public", "name", "-created_at")[:200]
        folders = Dataset.objects.of(org).committed().order_by("name", "-version").distinct("name")
        models = _NONE + [(str(base.pk), _titled(base)) for base in bases]
        named = _NONE + [(str(folder.pk), str(folder)) for folder in folders[:200]]
        self._choose("recipe", [(name, name) for name in catalog.names()])
        if recipe != "script":
            del self.fields["image"]
        own = [name for name in self.fields if name not in ("name", "recipe")]
        kept = Secret.objects.of(org).order_by("name").values_list("name", flat=True)
        secrets = self.fields["secrets"]
        assert isinstance(secrets, forms.MultipleChoiceField)
        secrets.choices = [(name, name) for name in kept]
        read = catalog.inputs(recipe)
        for each in read:
            self.fields[each.name] = forms.ChoiceField(
                required=False,
                choices=named if each.name in _OF_ROWS else models,
                label=each.name.capitalize() + ("" if each.required else " (optional)"),
                help_text=_sentence(each.help),
            )
        self.inputs = [self[each.name] for each in read]
        self.terms = [self[name] for name in own]

    def raw(self) -> dict[str, Any]:
        """What was typed, for `marketplace.core.specs.parse`."""
        return {
            name: value for name, value in self.cleaned_data.items() if value not in (None, "", [])
        }

    def _choose(self, name: str, choices: list[tuple[str, str]]) -> None:
        field = self.fields[name]
        assert isinstance(field, forms.ChoiceField)
        field.choices = choices


def _sentence(text: str) -> str:
    """With a capital, unless it begins with a file's name."""
    return text if "." in text.split(" ", 1)[0] else text[:1].upper() + text[1:]


def _titled(base: Artifact) -> str:
    """A model as a choice: of several of one name, which one."""
    if base.source:
        return f"{base.name} @ {base.commit[:8]}"
    if base.job_id is None:
        return base.name
    when = base.created_at.strftime("%Y-%m-%d %H:%M")
    return f"{base.name} ({'current, ' if base.state == 'current' else ''}{when})"
