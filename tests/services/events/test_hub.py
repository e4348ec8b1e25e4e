"""Taps and logs against reference models, under arbitrary sequences of uses."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.events.base import News
from services.events.hub import NEWS_OVERHEAD_BYTES, Hub, HubTap, decode, encode
from services.events.local import LocalBus
from services.events.store import Retention

TOPICS = ("a", "b", "c")
MAX_ITEMS = 4
MAX_BYTES = 2_000


class ModelTap:
    """What a tap must do, written for clarity: its queue and whether it lost something."""

    def __init__(self) -> None:
        self.queue: list[tuple[int, int]] = []
        self.is_lost = False

    def offer(self, number: int, size_bytes: int) -> None:
        if self.is_lost:
            return
        self.queue.append((number, size_bytes))
        used = sum(size + NEWS_OVERHEAD_BYTES for _, size in self.queue)
        if len(self.queue) > MAX_ITEMS or used > MAX_BYTES:
            self.queue, self.is_lost = [], True

    def get(self) -> int | None:
        return self.queue.pop(0)[0] if self.queue else None

    def lost(self) -> bool:
        was_lost, self.is_lost = self.is_lost, False
        return was_lost


_uses = st.lists(
    st.one_of(
        st.tuples(st.just("deliver"), st.sampled_from(TOPICS), st.sampled_from((0, 300, 900))),
        st.tuples(st.sampled_from(("get", "lost", "attach", "detach")), st.integers(0, 3)),
        st.tuples(st.sampled_from(("get", "get", "lost")), st.just(3)),
    ),
    max_size=80,
).map(lambda uses: [("attach", 3), *uses])


@given(_uses)
@settings(deadline=None, max_examples=200)
def test_a_hub_behaves_as_its_model(uses: list[Any]) -> None:
    async def run() -> None:
        hub = Hub()
        topics = (("a",), ("b",), ("a", "b"), ("a", "b", "c"))
        taps: dict[int, tuple[HubTap, ModelTap]] = {}
        for number, use in enumerate(uses):
            if use[0] == "deliver":
                hub.deliver(News(use[1], 0, {"n": number}), use[2])
                for which, (_, model) in taps.items():
                    if use[1] in topics[which]:
                        model.offer(number, use[2])
            elif use[0] == "attach" and use[1] not in taps:
                tap = HubTap(topics[use[1]], max_items=MAX_ITEMS, max_bytes=MAX_BYTES)
                taps[use[1]] = (tap, ModelTap())
                hub.add(tap)
            elif use[1] in taps:
                tap, model = taps[use[1]]
                if use[0] == "get":
                    news = await tap.get(0)
                    assert (None if news is None else news.data["n"]) == model.get()
                elif use[0] == "lost":
                    assert tap.lost() == model.lost()
                else:
                    hub.remove(tap)
                    del taps[use[1]]
            followed = {topic for which in taps for topic in topics[which]}
            assert set(hub.topics()) == followed
            assert [hub.follows(topic) for topic in TOPICS] == [t in followed for t in TOPICS]

    asyncio.run(run())


_log_uses = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 4)),
        st.tuples(st.just("read"), st.integers(0, 30), st.none() | st.integers(0, 5)),
        st.tuples(st.just("expire")),
        st.tuples(st.just("release")),
    ),
    max_size=40,
)


@given(_log_uses)
@settings(deadline=None, max_examples=60)
def test_a_log_behaves_as_its_model(uses: list[Any]) -> None:
    async def run() -> None:
        bus = LocalBus(None, retention=Retention(max_entries=10), ring_items=3)
        await bus.start()
        try:
            await _compare(bus, uses)
        finally:
            await bus.aclose()

    asyncio.run(run())


async def _compare(bus: LocalBus, uses: list[Any]) -> None:
    model: list[int] = []
    epochs = [""]
    for number, use in enumerate(uses):
        if use[0] == "append":
            seqs = await asyncio.gather(*(bus.append("t", {"n": number}) for _ in range(use[1])))
            assert seqs == list(range(len(model) + 1, len(model) + use[1] + 1))
            model += [number] * use[1]
        elif use[0] == "expire":
            await bus.expire("t", 0)
            model = []
        elif use[0] == "release":
            bus._rings.clear()
        else:
            _, after, limit = use
            log = await bus.read("t", after, limit)
            everything = await bus.read("t")
            assert log.head == len(model)
            kept = len(everything.entries)
            assert kept >= min(len(model), 9)
            assert kept <= 10
            first = len(model) - kept
            assert log.is_complete == (first <= after <= len(model))
            expected = list(enumerate(model, start=1))[max(first, after) :][:limit]
            assert [(e.seq, e.data["n"]) for e in log.entries] == expected
            if model:
                assert {e.epoch for e in everything.entries} == {log.epoch}
                if log.epoch != epochs[-1]:
                    assert log.epoch not in epochs
                    epochs.append(log.epoch)


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=9),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=5,
        ),
        max_size=4,
    )
)
@settings(deadline=None)
def test_json_comes_back_as_it_went(data: dict[str, Any]) -> None:
    assert decode(encode(data)) == data


@pytest.mark.parametrize("payload", [b"[1]", b"1", b'"x"', b"", b"{", b"\xff"])
def test_a_payload_that_is_no_object_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - orjson words its errors itself.
        decode(payload)


@pytest.mark.parametrize("room", [{"max_items": 0}, {"max_bytes": 0}])
def test_a_tap_without_room_is_refused(room: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="room"):
        HubTap(["t"], **({"max_items": 1, "max_bytes": 1} | room))
