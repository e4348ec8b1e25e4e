"""Variables that may be null by their type, and may not where they are used."""

from tests.fixtures import Api

EVENTS = """subscription($id: ID!, $yes: Boolean = true) {
  conversationEvents(conversationId: $id) {
    cursor
    ... on MessageDelta @include(if: $yes) { text }
  }
}"""
CREATE = "mutation { conversationCreate(input: {}) { conversation { id } } }"
VIEWER = "query($yes: Boolean = true) { viewer { id username @include(if: $yes) } }"


async def test_a_subscription_is_told_that_it_selects_by_nothing(api: Api) -> None:
    ada = await api.person("ada")
    id_ = (await api.run(CREATE, ada))["conversation"]["id"]
    async with api.subscribe(EVENTS, ada, id=id_, yes=None) as stream:
        assert await stream.next() is None
    (error,) = stream.refusal
    assert error["extensions"]["code"] == "BAD_USER_INPUT"
    assert "$yes" in error["message"]


async def test_a_query_tells_whose_mistake_it_is(api: Api) -> None:
    ada = await api.person("ada")
    answer = await api.raw(VIEWER, ada, yes=None)
    (error,) = answer["errors"]
    assert error["message"] == "Argument 'if' of non-null type 'Boolean!' must not be null."
    assert error["extensions"]["code"] == "BAD_USER_INPUT"


async def test_null_where_a_value_may_only_be_left_out_is_the_clients_mistake(api: Api) -> None:
    ada = await api.person("ada")
    update = """mutation($input: MemoryUpdateInput!) {
      memoryUpdate(id: "mem_1", input: $input) { errors { code } } }"""
    answer = await api.raw(update, ada, input={"content": None})
    (error,) = answer["errors"]
    assert error["message"] == "Expected value of type 'str', found null."
    assert error["extensions"]["code"] == "BAD_USER_INPUT"
