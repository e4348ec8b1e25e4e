"""The tables of who may see and do what are whole: what the schema gains must be stated there."""

from graphql import GraphQLObjectType, get_named_type, is_composite_type

from tests.api.access.expectations import FIELDS, MUTATIONS, QUERIES, STRUCTURES, SUBSCRIPTIONS
from tests.api.access.graph import GRAPH, NODE_TYPES, root


def test_every_root_field_has_an_expectation() -> None:
    assert set(root("query")) == set(QUERIES)
    assert set(root("mutation")) == set(MUTATIONS)
    assert set(root("subscription")) == set(SUBSCRIPTIONS)


def test_every_type_and_field_has_an_expectation() -> None:
    structural = ("Connection", "Edge", "Payload")
    objects = {
        name: type_
        for name, type_ in GRAPH.type_map.items()
        if isinstance(type_, GraphQLObjectType)
        and not name.startswith("__")
        and not name.endswith(structural)
        and name not in ("Query", "Mutation", "Subscription")
    }
    assert set(objects) - STRUCTURES <= set(FIELDS), "types without an expectation"
    for name, type_ in objects.items():
        if name in STRUCTURES:
            assert "Node" not in {i.name for i in type_.interfaces}, name
            continue
        assert set(type_.fields) <= set(FIELDS[name]), f"fields of {name} without an expectation"
        for field_name, field in type_.fields.items():
            is_plain = FIELDS[name][field_name].kind == "PLAIN"
            assert is_plain != is_composite_type(get_named_type(field.type)), (name, field_name)


def test_every_node_is_tried() -> None:
    assert set(NODE_TYPES) <= set(FIELDS)
