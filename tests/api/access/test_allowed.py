"""What each kind of viewer may change; in a world of its own, because it is changed."""

import pytest

from tests.api.access.expectations import MUTATIONS, OK
from tests.api.access.test_access import outcome
from tests.api.access.world import WHO, World, filled

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What ends things comes last, so that the others find them.
_LAST = (
    "conversationDelete",
    "memoryDelete",
    "planDelete",
    "sandboxPortClose",
    "sandboxDelete",
    "sessionRevoke",
)
_GONE_AFTERWARDS = {"sandboxSnapshotDelete": "SandboxSnapshot", "sandboxPortClose": "SandboxPort"}
ORDER = sorted(MUTATIONS, key=lambda name: (name in _LAST, list(MUTATIONS).index(name)))


# The owner, who ends what is theirs, comes last.
@pytest.mark.parametrize("who", sorted(WHO, key=lambda who: who == "owner"))
async def test_who_may_change_something_is_not_turned_away(world: World, who: str) -> None:
    for name in ORDER:
        mutation = MUTATIONS[name]
        if getattr(mutation, who) != OK:
            continue
        variables = filled(world, who, mutation.variables)
        if who == "admin" and name in _GONE_AFTERWARDS:
            # Of another person than the owner, who would find nothing.
            variables = {"id": world.of_stranger[_GONE_AFTERWARDS[name]]}
        answer = await world.api.raw(mutation.document, world.person(who), **variables)
        assert outcome(answer) == OK, (name, answer)
