"""What a client may ask for again: the output and the end of executions that outlive it."""

from sandbox.inside.core import Agent
from sandbox.inside.wire import CHUNK, OUTPUT, RESULT, Refused


class Kept:
    """The output of one execution that was not acknowledged yet, then its end.

    It holds no more than the window of the execution, for that is how far its credit goes. Each
    stream is held by itself: what is sent again comes in the order of its stream alone.
    """

    def __init__(self, agent: Agent, op: int) -> None:
        self.agent = agent
        self.op = op
        self.held = (bytearray(), bytearray())  # What is behind the bytes acknowledged.
        self.acknowledged = [0, 0]
        self.sent = [0, 0]
        self.result = b""
        self.away = False  # Another client took over, and has not asked for it.

    def add(self, index: int, data: bytes) -> None:
        self.held[index].extend(data)
        self.send()

    def end(self, result: bytes) -> None:
        self.result = result
        self.send()

    def acknowledge(self, offsets: "tuple[int, int]") -> int:
        """Let go of what is safe; gives how many bytes these were. Raises Refused."""
        sizes = [offset - before for offset, before in zip(offsets, self.acknowledged)]  # noqa: B905
        for size, held in zip(sizes, self.held):  # noqa: B905 - 3.8
            if not 0 <= size <= len(held):
                raise Refused("INVALID", "No such bytes are held.")
        for size, held in zip(sizes, self.held):  # noqa: B905 - 3.8
            del held[:size]
        self.acknowledged = list(offsets)
        # What is safe already is not sent any more, whoever had it.
        self.sent = [max(pair) for pair in zip(self.sent, offsets)]  # noqa: B905 - 3.8
        return sum(sizes)

    def resume(self, offsets: "tuple[int, int]") -> int:
        """Send everything behind these bytes, which are safe, as if for the first time."""
        freed = self.acknowledge(offsets)
        self.sent = list(offsets)
        self.away = False
        self.send()
        return freed

    def send(self) -> None:
        """Send what was not sent yet, as far as the channel takes it, and the end behind it."""
        if self.away:
            return
        for index, held in enumerate(self.held):
            base = self.acknowledged[index]
            while self.sent[index] < base + len(held):
                if self.agent.is_full():
                    return
                at = self.sent[index] - base
                data = bytes(held[at : at + CHUNK])
                self.agent.send(OUTPUT, self.op, bytes((index,)), data)
                self.sent[index] += len(data)
        if self.result:
            self.agent.send(RESULT, self.op, self.result)
            self.away = True  # There is nothing left to send, unless another client asks.
