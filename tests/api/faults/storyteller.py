"""A model at the far end of the network that writes for as long as a test wants it to."""

import itertools
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORD_S = 0.02
_FIRST_LINE = re.compile(r"tell (\w+)")
# Characters of every width: offsets count characters, not bytes nor UTF-16 units.
_WORDS = ("word", "naïve", "한국어", "😀👩‍👩‍👧", "\n", "été")


class Story:
    """One answer: numbered words, until it is told to end.

    Whoever asks for it again gets the same words, those written before without waiting; unless it
    `varies`: then each telling has a mind of its own from its tenth word on.
    """

    def __init__(self, *, varies: bool = False) -> None:
        self.varies = varies
        # What was written of it by now, of the newest telling.
        self.text = ""
        self.tellings = 0
        self._must_end = threading.Event()

    @property
    def is_ending(self) -> bool:
        """Whether nothing more is written."""
        return self._must_end.is_set()

    def end(self) -> None:
        """Let it end with what is written now."""
        self._must_end.set()

    def tell(self) -> Iterator[str]:
        """Give the words, at the pace of a model."""
        self.tellings += 1
        telling, told = self.tellings, ""
        for number in itertools.count():
            if len(told) >= len(self.text) and self._must_end.wait(WORD_S):
                return
            mind = f"/{telling}" if self.varies and number >= 10 else ""
            word = f"{_WORDS[number % len(_WORDS)]}{number}{mind} "
            told += word
            self.text = max(self.text, told, key=len)
            yield word


class Storyteller:
    """Speaks OpenAI's streaming chat completions in threads of its own, so that it outlives loops.

    A message that says "tell NAME" is answered by the story of that name, any other one by "ok".
    """

    def __init__(self) -> None:
        self._stories: dict[str, Story] = {}
        stories = self._stories

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                said = [m["content"] for m in body["messages"] if m["role"] == "user"]
                named = _FIRST_LINE.match(said[-1])
                words = stories[named[1]].tell() if named else iter(["ok"])
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.end_headers()
                try:
                    self._say({"role": "assistant"})
                    for word in words:
                        self._say({"content": word})
                    self._say({}, reason="stop")
                    self.wfile.write(b"data: [DONE]\n\n")
                except ConnectionError:
                    # Whoever asked was killed, or wants no more.
                    return

            def _say(self, delta: dict[str, Any], *, reason: str | None = None) -> None:
                choice = {"index": 0, "delta": delta, "finish_reason": reason}
                chunk = {"id": "chat_1", "object": "chat.completion.chunk", "created": 0}
                event = json.dumps({**chunk, "model": "stories", "choices": [choice]})
                self.wfile.write(f"data: {event}\n\n".encode())

            def log_message(self, *_: Any) -> None:
                """Keep quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to ask this model."""
        return {
            "NOOSPHERE_LLM_BASE_URL": f"http://127.0.0.1:{self._server.server_port}/v1",
            "NOOSPHERE_LLM_API_KEY": "key",
            "NOOSPHERE_LLM_MODEL": "stories",
        }

    def story(self, *, varies: bool = False) -> tuple[str, Story]:
        """Begin a story; gives what to say to hear it, and the story."""
        name = f"story{len(self._stories)}"
        story = self._stories[name] = Story(varies=varies)
        return f"tell {name}", story

    def close(self) -> None:
        """End all stories and the server."""
        for story in self._stories.values():
            story.end()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
