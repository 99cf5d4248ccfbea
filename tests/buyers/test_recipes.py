"""Recipes: one description, shown by the form, the API and the public page."""

import pytest
from django.urls import reverse

from agent.recipes import catalog
from buyers import recipes
from buyers.forms import ParameterForm

HTMX = {"HX-Request": "true"}


@pytest.mark.parametrize("name", catalog.names())
def test_every_parameter_of_every_recipe_has_a_field_with_its_default(name):
    form = ParameterForm(name)
    for parameter in recipes.recipe(name).parameters:
        assert parameter.name in form.fields
        assert parameter.label[0].isupper()


@pytest.mark.parametrize("name", catalog.names())
def test_what_a_form_opens_with_is_what_the_catalogue_takes(name):
    opened = ParameterForm(name)
    shown = {f"p-{each}": opened.get_initial_for_field(opened.fields[each], each)
             for each in opened.fields}  # fmt: skip
    needed = [each.name for each in recipes.recipe(name).parameters if each.required]
    posted = ParameterForm(name, {key: value for key, value in shown.items() if value is not False})
    assert posted.is_valid() == (not needed), posted.errors
    if posted.is_valid():
        try:
            catalog.validate(name, {})
        except catalog.ParameterError:
            return  # it needs more than its defaults
        assert catalog.validate(name, posted.raw()) == catalog.validate(name, {})


def test_lists_are_typed_one_a_line_and_empty_fields_keep_their_defaults():
    form = ParameterForm("lora", {"p-targets": "q_proj\n\n v_proj \n", "p-steps": ""})
    assert form.is_valid(), form.errors
    assert form.raw() == {"targets": ["q_proj", "v_proj"]}


@pytest.mark.django_db
@pytest.mark.usefixtures("valkey")
def test_another_recipe_swaps_the_fields_and_keeps_what_was_typed(member):
    page = member.get(reverse("new_job")).content.decode()
    assert 'name="p-rank"' in page
    assert 'hx-target="#recipe-fields"' in page
    typed = {"recipe": "full", "p-steps": "123", "p-rank": "8", "budget": "5"}
    fragment = member.get(reverse("new_job"), typed, headers=HTMX).content.decode()
    assert "<html" not in fragment
    assert 'name="p-steps" value="123"' in fragment
    assert 'name="p-rank"' not in fragment
    assert 'id="recipe-fields"' in fragment


@pytest.mark.django_db
@pytest.mark.usefixtures("valkey")
def test_what_the_catalogue_refuses_stands_beside_its_field(member):
    typed = {"recipe": "lora", "budget": "5", "gpus": "1", "disk_gib": "20", "trust": "community",
             "p-steps": "0", "quote": ""}  # fmt: skip
    page = member.post(reverse("new_job"), typed).content.decode()
    assert "steps must be a whole number from 1 to 1,000,000" in page
    typed["p-rank"] = "x" * 50
    assert "at most 40 characters" in member.post(reverse("new_job"), typed).content.decode()


@pytest.mark.django_db
@pytest.mark.usefixtures("valkey")
def test_the_page_of_recipes_is_public_and_names_every_parameter(client, api):
    page = client.get("/docs/recipes/").content.decode()
    said = api.get("/api/v1/recipes/").json()
    assert list(said) == list(catalog.names())
    for name in catalog.names():
        assert f'id="{name}"' in page
        assert said[name]["about"]
        for parameter in catalog.schema(name)["properties"]:
            assert f"<code>{parameter}</code>" in page
    assert "domains/&lt;name&gt;" in page
