"""A database that goes away and comes back: clients are told to try again, and then it works."""

from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests.api.people import sign_up
from tests.api.serving import served
from tests.models.forwarding import forwarding

QUERY = "{ viewer { username conversations(first: 1) { nodes { id } } } }"
CREATE = 'mutation { conversationCreate(input: {title: "Trees"}) { errors { code } } }'


@pytest.mark.mysql
async def test_a_database_that_is_away_is_told_as_such_and_taken_up_again(
    tmp_path: Path, migrated_mysql_url: str
) -> None:
    url = make_url(migrated_mysql_url)
    async with forwarding(str(url.host), int(url.port or 3306)) as road:
        over_road = url.set(host="127.0.0.1", port=road.port)
        settings = {
            "database_url": over_road.render_as_string(hide_password=False),
            "migrate_on_start": False,
        }
        async with served(tmp_path, **settings) as server:
            ann = await sign_up(server.deps, "ann")
            assert "errors" not in (await server.post(QUERY, ann)).json()
            await road.close()
            for text in (QUERY, CREATE, QUERY):
                answer = (await server.post(text, ann)).json()
                assert {error["extensions"]["code"] for error in answer["errors"]} == {
                    "UNAVAILABLE"
                }, answer
                assert answer["errors"][0]["extensions"]["retryAfter"] > 0
                assert "127.0.0.1" not in str(answer)
            await road.open()
            again = (await server.post(QUERY, ann)).json()
            assert "errors" not in again
            assert again["data"] == {"viewer": {"username": "ann", "conversations": {"nodes": []}}}
            created = (await server.post(CREATE, ann)).json()
            assert created["data"]["conversationCreate"]["errors"] == []
