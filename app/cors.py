"""Who may read our answers from other sites, as Starlette tells it, each header said once."""

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Message, Send


class Cors(CORSMiddleware):
    """Names nothing twice in `Vary`: an answer may say by itself what it depends on."""

    async def send(self, message: Message, send: Send, request_headers: Headers) -> None:
        """Send a message, the first of an answer with what browsers ask for."""
        if message["type"] != "http.response.start":
            await send(message)
            return

        async def send_tidy(message: Message) -> None:
            headers = MutableHeaders(scope=message)
            named = [name.strip() for line in headers.getlist("vary") for name in line.split(",")]
            headers["vary"] = ", ".join({name.lower(): name for name in named if name}.values())
            await send(message)

        await super().send(message, send_tidy, request_headers)
