import math

import pytest
from jsonschema import Draft202012Validator

from services import tools
from services.errors import UserError, UserErrorCode, UserErrors
from services.tools import arguments as args
from services.tools.builtin import BUILT_IN, BY_NAME


def checked(name, given, **options):
    schema = BY_NAME[name].input_schema
    return args.check(name, schema, args.read(given), **options)


@pytest.mark.parametrize("tool", BUILT_IN, ids=lambda tool: tool.name)
def test_every_schema_is_valid_and_described(tool):
    Draft202012Validator.check_schema(tool.input_schema)
    assert tool.description
    assert all(schema["description"] for schema in tool.properties.values())
    assert set(tool.required) <= set(tool.properties)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("run_code", '{"code": "1"}', {"code": "1", "language": "python"}),
        ("run_code", {"code": "1", "language": "BASH"}, {"code": "1", "language": "bash"}),
        ("run_code", {"code": "1", "language": None}, {"code": "1", "language": "python"}),
        ("recall", {"query": "x", "first": 3.0}, {"query": "x", "first": 3.0}),
        ("remember", {"content": "x", "type": "semantic"}, {"content": "x", "type": "SEMANTIC"}),
        ("current_time", "", {"timeZone": "UTC"}),
        ("current_time", " null ", {"timeZone": "UTC"}),
    ],
)
def test_good_arguments_are_filled_in(name, given, expected):
    assert checked(name, given) == expected


@pytest.mark.parametrize(
    ("name", "given", "code", "path", "words"),
    [
        ("run_code", {}, "REQUIRED", ("code",), ["`code`", "a string"]),
        ("run_code", {"code": None}, "INVALID", ("code",), ["`code`", "a string", "null"]),
        ("run_code", {"code": 7}, "INVALID", ("code",), ["`code`", "a string", "7"]),
        ("run_code", {"code": ["x"]}, "INVALID", ("code",), ["a string", "a list"]),
        ("run_code", {"code": ""}, "REQUIRED", ("code",), ["`code`", "empty"]),
        ("run_code", {"code": "x" * 65537}, "LIMIT", ("code",), ["65,536", "65,537"]),
        (
            "run_code",
            {"code": "x", "language": "cobol"},
            "INVALID",
            ("language",),
            ["`language`", "python, bash, sh", "cobol"],
        ),
        ("run_code", {"code": "x", "lang": 1}, "INVALID", ("lang",), ["`lang`", "`language`"]),
        ("recall", {"query": "x", "first": "5"}, "INVALID", ("first",), ["a whole number", '"5"']),
        ("recall", {"query": "x", "first": 0}, "INVALID", ("first",), ["between 1 and 20", "0"]),
        ("recall", {"query": "x", "first": True}, "INVALID", ("first",), ["true"]),
        ("recall", {"query": "x", "first": 1.5}, "INVALID", ("first",), ["1.5"]),
        ("remember", {"content": "x", "importance": 2}, "INVALID", ("importance",), ["0 and 1"]),
    ],
)
def test_wrong_arguments_are_named_with_what_was_expected(name, given, code, path, words):
    with pytest.raises(UserErrors) as caught:
        checked(name, given)
    [error] = caught.value.errors
    assert (error.code, error.path) == (code, path)
    for word in [name, *words]:
        assert word in error.message


def test_every_wrong_argument_is_named():
    with pytest.raises(UserErrors) as caught:
        checked("recall", {"first": 0, "colour": 1})
    assert [error.path for error in caught.value.errors] == [("colour",), ("first",), ("query",)]


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("[1]", UserErrorCode.INVALID),
        ('"x"', UserErrorCode.INVALID),
        ("{", UserErrorCode.INVALID),
        ('{"code": NaN}', UserErrorCode.INVALID),
        ('{"code": "\\ud800"}', UserErrorCode.INVALID),
        ('{"code": "\ud800"}', UserErrorCode.INVALID),
        ('{"code": "a\\u0000b"}', UserErrorCode.INVALID),
        ("[" * 100_000, UserErrorCode.INVALID),
        ('{"code": "' + "x" * 300_000 + '"}', UserErrorCode.LIMIT),
        ({"code": "x" * 300_000}, UserErrorCode.LIMIT),
        ({"code": math.nan}, UserErrorCode.INVALID),
        ({"code": {"deep": [math.inf]}}, UserErrorCode.INVALID),
        ({"code": "a\x00b"}, UserErrorCode.INVALID),
        ({"co\x00de": "x"}, UserErrorCode.INVALID),
        ({"code": object()}, UserErrorCode.INVALID),
        ({"code": 2**70}, UserErrorCode.INVALID),
    ],
)
def test_what_is_no_sound_json_object_is_refused(given, code):
    with pytest.raises(UserError) as caught:
        args.read(given)
    assert caught.value.code is code
    assert len(caught.value.message) < 300


def test_endless_nesting_is_refused():
    nested: dict = {}
    for _ in range(100):
        nested = {"x": nested}
    with pytest.raises(UserError, match="32 levels"):
        args.read(nested)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("run_code", {"code": "{{steps.0.output}}"}),
        ("run_code", {"code": "print('{{ steps.12.result.a.b }}')"}),
        ("run_code", {"code": "1", "language": "{{steps.0.output}}"}),
        ("recall", {"query": "x", "first": "{{steps.0.result.count}}"}),
        ("remember", {"content": "{{steps.0.output}}", "importance": " {{steps.1.output}} "}),
    ],
)
async def test_references_stand_for_what_is_not_known_yet(deps, name, given):
    assert await tools.check_arguments(deps, name, given) == []


@pytest.mark.parametrize(
    ("name", "given", "path"),
    [
        ("recall", {"query": "x", "first": "about {{steps.0.output}}"}, ("arguments", "first")),
        ("recall", {"first": "{{steps.0.output}}"}, ("arguments", "query")),
        ("run_code", {"code": ["{{steps.0.output}}"]}, ("arguments", "code")),
        ("run_code", {"code": "1", "language": "{{steps}}"}, ("arguments", "language")),
        ("run_code", {"code": "1", "{{steps.0.output}}": 1}, ("arguments", "{{steps.0.output}}")),
        ("run_code", {"code": "a\x00"}, ("arguments", "code")),
        ("fly", {}, ("tool",)),
    ],
)
async def test_a_plan_is_told_what_is_wrong_before_it_runs(deps, name, given, path):
    [error] = await tools.check_arguments(deps, name, given)
    assert error.path == path


def test_references_are_mere_text_when_a_tool_runs():
    with pytest.raises(UserErrors):
        checked("recall", {"query": "x", "first": "{{steps.0.output}}"})


async def test_a_tool_switched_off_is_refused_for_plans(deps, admin):
    async with deps.db.reading() as connection:
        tool_id = (
            await connection.exec_driver_sql("SELECT id FROM tools WHERE name = 'run_code'")
        ).scalar_one()
    await tools.update(deps, admin, tool_id=tool_id, is_enabled=False)
    [error] = await tools.check_arguments(deps, "run_code", {"code": "1"})
    assert (error.code, error.path) == (UserErrorCode.FORBIDDEN, ("tool",))
    assert "recall" in error.message
    assert "run_code" not in error.message.split("there are")[1]
