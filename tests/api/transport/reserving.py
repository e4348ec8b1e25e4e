"""Reserved event streams, and what tests look at in them."""

from typing import Any

from tests.api.transport.streams import EVENT_STREAM

ANN, BOB = {"authorization": "Bearer ann"}, {"authorization": "Bearer bob"}
ACCEPT = {"accept": EVENT_STREAM}


def code_of(response: Any) -> str:
    (error,) = response.json()["errors"]
    return str(error["extensions"]["code"])
