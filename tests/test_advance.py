"""State moves in one place, once, with one line of story."""

import pytest
from django.db import connection

from marketplace.core.errors import Conflict, InvalidTransition
from marketplace.models import StateChange, advance
from suppliers.models import Node
from tests import world

pytestmark = pytest.mark.django_db


@pytest.fixture
def nodes(now):
    supplier = world.org(now=now)
    return [world.agent(supplier, now=now).node for _ in range(5)]


def test_all_rows_move_and_each_has_a_line(nodes, now):
    moved = advance(nodes, "drain", now=now, reason="winter", by="me")
    assert moved == nodes
    assert set(Node.objects.values_list("state", flat=True)) == {"draining"}
    lines = StateChange.objects.all()
    assert {line.subject for line in lines} == {node.pk for node in nodes}
    assert {(line.source, line.target, line.reason, line.by) for line in lines} == {
        ("ready", "draining", "winter", "me")
    }


def test_a_row_that_moved_on_meanwhile_stays_and_has_no_line(nodes, now):
    Node.objects.filter(pk=nodes[0].pk).update(state="quarantined")
    moved = advance(nodes, "drain", now=now)
    assert moved == nodes[1:]
    assert nodes[0].state == "ready"
    assert not StateChange.objects.filter(subject=nodes[0].pk).exists()


def test_for_one_row_that_is_a_conflict(nodes, now):
    Node.objects.filter(pk=nodes[0].pk).update(state="quarantined")
    with pytest.raises(Conflict, match="moved on"):
        nodes[0].advance("drain", now=now)


def test_an_event_that_one_row_can_not_have_moves_none(nodes, now):
    nodes[4].state = "retired"
    with pytest.raises(InvalidTransition):
        advance(nodes, "drain", now=now)
    assert set(Node.objects.values_list("state", flat=True)) == {"ready"}


def test_other_fields_change_in_the_same_step(nodes, now):
    nodes[0].advance("retire", now=now, owner_why="sold")
    assert Node.objects.get(pk=nodes[0].pk).owner_why == "sold"
    assert nodes[0].owner_why == "sold"


def test_moving_many_rows_takes_as_many_queries_as_moving_one(
    nodes, now, django_assert_num_queries
):
    # One UPDATE … RETURNING, one INSERT of the lines.
    with django_assert_num_queries(2):
        advance(nodes, "drain", now=now)


def test_nothing_moves_without_rows(now, django_assert_num_queries):
    with django_assert_num_queries(0):
        assert advance([], "drain", now=now) == []


def test_a_story_is_told_in_order(nodes, now):
    nodes[0].advance("drain", now=now)
    nodes[0].advance("undrain", now=now)
    assert [line.event for line in nodes[0].story()] == ["drain", "undrain"]
    assert connection.vendor == "postgresql"
