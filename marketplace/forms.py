"""Forms of all pages: signing up, API keys, and how any form shows a service's no."""

from collections.abc import Mapping
from typing import Any, ClassVar

from django import forms
from django.contrib.auth.models import User
from django.db import transaction
from django.http import HttpRequest
from django.utils import timezone

from marketplace import accounts
from marketplace.core.errors import Invalid, MarketError


class RefusableForm(forms.Form):
    """A form that can also show why a service said no."""

    shown_by: ClassVar[Mapping[str, str]] = {}
    """A service's name of a field → the form's, where they differ."""

    def refuse(self, error: MarketError) -> None:
        """Puts the service's words beside the field at fault, or above them all."""
        named = error.field.partition(".")[0] if isinstance(error, Invalid) else ""
        field = self.shown_by.get(named, named)
        self.add_error(field if field in self.fields else None, str(error))


class SignupForm(forms.Form):
    """What allauth's form asks beside e-mail and password."""

    organisation = forms.CharField(
        max_length=100,
        label="Organisation",
        help_text="Your company, university, or just your name",
    )
    field_order = ["organisation", "email", "password1", "password2"]

    @transaction.atomic
    def signup(self, request: HttpRequest, user: User) -> None:
        """Called by allauth once the user exists."""
        accounts.create_org(self.cleaned_data["organisation"], owner=user, now=timezone.now())


class ApiKeyForm(forms.Form):
    """A new key's name and scopes."""

    name = forms.CharField(max_length=60)
    scopes = forms.MultipleChoiceField(widget=forms.CheckboxSelectMultiple)

    def __init__(self, *args: Any, choices: list[tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["scopes"].choices = choices  # type: ignore[attr-defined]
