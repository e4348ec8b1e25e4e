"""The benchmark of delivery runs, and notices what is wrong with a delivery."""

import json
import math
import os
from pathlib import Path

import orjson
import pytest

from benchmarks import fanout
from benchmarks.delivery import peer
from benchmarks.delivery.subscribers import Seen, Subscriber, Subscribers, Subscription
from benchmarks.delivery.texts import TEXT_CHARS, event_text
from tests.servers import require

_SIZES = (
    *("--rounds", "1", "--subscribers", "8", "--viewers", "2"),
    *("--same-events", "20", "--many-events", "5", "--paced-events", "3", "--paced-rate", "50"),
    *("--streams", "3", "--token-rate", "50", "--ramp", "0.1", "--seconds", "0.4"),
)
_COUNT = 4


@pytest.mark.redis
@pytest.mark.timeout(600)  # Many processes start, one after the other.
def test_a_small_run_prints_a_ratio_for_every_measure(capsys: pytest.CaptureFixture[str]) -> None:
    require("node")
    url = require("redis")["NOOSPHERE_TEST_REDIS_URL"]
    # Another database than that of the tests, for it is emptied.
    other = f"{url.rpartition('/')[0]}/9"
    cache = os.environ.get("NOOSPHERE_TEST_CACHE", Path.home() / ".cache" / "noosphere-tests")
    assert fanout.main([*_SIZES, "--redis", other, "--cache", str(cache)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for title in [*(row.title for row in fanout._ROWS), *(one.title for one in fanout._LIMITS)]:
        (line,) = (line for line in lines if line.startswith(f"{title:<40} "))
        ratio = float(line[78:].split()[0])
        # So few subscribers add less memory than a process may give back meanwhile.
        assert ratio >= 0 or ("growth" in title and math.isfinite(ratio)), line
    for server in ("same, noosphere", "same, graphql-ws", "same, floor", "many, graphql-ws"):
        assert any(line.startswith(f"{server}: ") for line in lines), server


def _measured() -> fanout.Measures:
    keys = {row.key for row in fanout._ROWS} | {"bytes", "load", "merged"}
    return dict.fromkeys(keys, 100.0)


@pytest.mark.parametrize("slow_rounds", [1, 2])
def test_the_bars_are_held_against_the_median_of_the_ratios(
    slow_rounds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"noosphere": _measured(), "graphql-ws": _measured(), "floor": _measured()}
    bars = ("paced_p99_ms", "connect_s", "idle_mib", "peak_mib")
    good["noosphere"] |= {"frames_per_s": 500.0} | dict.fromkeys(bars, 40.0)
    bad = {**good, "noosphere": {**good["noosphere"], "connect_s": 101.0}}
    rounds = [bad] * slow_rounds + [good] * (3 - slow_rounds)
    tokens = [{"p50_ms": 49.0, "p99_ms": 119.0, "tokens_per_s": 1.0, "cores": 1.0}]
    assert fanout._report({"same": rounds, "many": [good]}, tokens) is (slow_rounds == 1)
    missed = [line for line in capsys.readouterr().out.splitlines() if line.endswith("MISSED")]
    assert len(missed) == slow_rounds - 1


def test_late_tokens_miss_their_bar(capsys: pytest.CaptureFixture[str]) -> None:
    late = {"p50_ms": 49.0, "p99_ms": 121.0, "tokens_per_s": 1.0, "cores": 1.0}
    assert fanout._report({}, [late]) is False
    assert capsys.readouterr().out.count("MISSED") == 1


def test_the_lock_of_the_peer_is_hashed_and_names_no_host() -> None:
    lock = json.loads((peer.SOURCE / "package-lock.json").read_text())
    wanted = json.loads((peer.SOURCE / "package.json").read_text())["dependencies"]
    packages = {name: one for name, one in lock["packages"].items() if name}
    assert {f"node_modules/{name}" for name in wanted} <= packages.keys()
    assert all(one["integrity"].startswith("sha512-") for one in packages.values())
    assert "://" not in (peer.SOURCE / "package-lock.json").read_text()


def _event(number: int, *, topic: int = 3, offset: int | None = None) -> dict[str, object]:
    text = event_text(topic, number, 10**18, is_last=number == _COUNT - 1)
    place = number * TEXT_CHARS if offset is None else offset
    return {"__typename": "MessageDelta", "cursor": "c", "offset": place, "text": text}


def _merged(first: int, last: int) -> dict[str, object]:
    parts = [_event(number) for number in range(first, last + 1)]
    return {**parts[0], "text": "".join(str(part["text"]) for part in parts)}


def _frames(*events: dict[str, object]) -> bytes:
    sent = b""
    for event in events:
        payload = {"data": {"conversationEvents": event}}
        data = orjson.dumps({"id": "1", "type": "next", "payload": payload})
        sent += b"\x81\x7e" + len(data).to_bytes(2, "big") + data
    return sent


async def _checked(*streams: bytes, size: int = 100) -> Seen:
    """Let subscribers of topic 3 receive streams in small pieces, and check the series."""
    owner = Subscribers()
    for stream in streams:
        subscriber = Subscriber(owner, Subscription("x", 3))
        subscriber.is_live.cancel()
        for start in range(0, len(stream), size):
            subscriber.chunks.append(stream[start : start + size])
            subscriber.times.append(10**18 + start + 1)
        owner._subscribers.append(subscriber)
    return await owner.check_series(0, _COUNT)


async def test_whole_series_are_counted_merged_or_not() -> None:
    plain = _frames(*map(_event, range(_COUNT)))
    ping = b"\x81\x0f" + b'{"type":"ping"}'
    merged = _frames(_event(0), _merged(1, 2)) + ping + _frames(_event(3))
    seen = await _checked(plain, plain, merged)
    assert (seen.frames, seen.merged) == (11, 1)
    assert len(seen.latencies) == 12
    assert max(seen.latencies) == seen.ended - 10**18 <= len(merged) + 100


async def _tokens(
    *numbers: int, owners: tuple[int, ...] = (7,), ended: int = 1
) -> tuple[list[int], set[int]]:
    owner = Subscribers()
    stamps = [
        f"[{owners[index % len(owners)]:05d}.{number:07d}@{10**18:019d}]"
        for index, number in enumerate(numbers)
    ]
    offsets = range(0, len(stamps) * len(stamps[0]), len(stamps[0]))
    events: list[dict[str, object]] = [
        {"__typename": "MessageDelta", "cursor": "c", "offset": offset, "text": stamp}
        for offset, stamp in zip(offsets, stamps, strict=True)
    ]
    subscriber = Subscriber(owner, Subscription("x", 0))
    subscriber.is_live.cancel()
    subscriber.chunks, subscriber.times = [_frames(*events)], [10**18 + 5]
    owner._subscribers = [subscriber]
    seen, streams = await owner.check_tokens(3, 10**18, 10**18 + ended)
    return seen.latencies, streams


async def test_tokens_must_be_all_there_in_order_and_of_one_stream() -> None:
    assert await _tokens(0, 1, 2) == ([5, 5, 5], {7})
    assert await _tokens(0, 1, 2, ended=0) == ([], {7})
    for wrong in ((0, 1), (0, 2, 1), (0, 1, 1, 2)):
        with pytest.raises(AssertionError):
            await _tokens(*wrong)
    with pytest.raises(AssertionError):
        await _tokens(0, 1, 2, owners=(7, 8))


_STREAMS = {
    "an event is missing": _frames(_event(0), _event(2), _event(3)),
    "an event came twice": _frames(_event(0), _event(1), _event(1), _event(2), _event(3)),
    "two events changed places": _frames(_event(1), _event(0), _event(2), _event(3)),
    "the last event is missing": _frames(_event(0), _event(1), _event(2)),
    "the text is of another topic": _frames(*[_event(n, topic=4) for n in range(_COUNT)]),
    "an offset is wrong": _frames(_event(0), _event(1, offset=199), _event(2), _event(3)),
    "a byte differs": _frames(*map(_event, range(_COUNT))).replace(b"ghijk", b"ghiJk", 1),
    "an event has errors": _frames(*map(_event, range(_COUNT))).replace(
        b'"payload":{', b'"payload":{"errors":[],'
    ),
    "it began anew": _frames(_event(0), {"__typename": "ConversationReset", "cursor": "c"}),
}


@pytest.mark.parametrize("stream", _STREAMS.values(), ids=_STREAMS)
async def test_a_subscriber_notices_when(stream: bytes) -> None:
    whole = _frames(*map(_event, range(_COUNT)))
    assert stream != whole
    with pytest.raises(AssertionError):
        await _checked(whole, stream)
