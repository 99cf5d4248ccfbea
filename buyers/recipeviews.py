"""The public page of recipes: what each reads and takes, and what a row looks like."""

from collections.abc import Mapping
from typing import Final

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from agent.recipes import formats
from buyers import recipes as known

# A row of each kind that can be copied; `formats` says what is allowed.
_ROWS: Final[Mapping[formats.Kind, tuple[str, ...]]] = {
    "answers": (
        '{"prompt": "What is 2+2?", "completion": "4"}',
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}',
    ),
    "preferences": ('{"prompt": "What is 2+2?", "chosen": "4", "rejected": "5"}',),
    "prompts": ('{"prompt": "What is 2+2?", "answer": 4}',),
    "text": ('{"text": "Once upon a time …"}',),
}


@require_GET
def recipes(request: HttpRequest) -> HttpResponse:
    """Made from the schema that the form and the command line are made from."""
    kinds = [
        {
            "name": kind,
            "forms": forms,
            "readers": [method for method, read in formats.KIND_OF.items() if read == kind],
        }
        for kind, forms in _ROWS.items()
    ]
    context = {"recipes": known.every(), "kinds": kinds, "extensions": formats.EXTENSIONS}
    return render(request, "buyers/recipes.html", context)
