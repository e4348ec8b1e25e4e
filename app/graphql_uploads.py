"""Mutations that a file comes with: they run while it is read."""

from typing import TYPE_CHECKING, Any

from app.graphql_register import Register
from app.graphql_reply import Reply
from app.graphql_request import Params, RequestInfo
from app.graphql_upload import Upload
from schema.execution import Result, failure

if TYPE_CHECKING:
    from app.graphql_http import GraphQLHTTP


class Uploads:
    """Those under way, at most `most` of each viewer (or of each address) at once."""

    def __init__(self, endpoint: "GraphQLHTTP", most: int) -> None:
        self.most = most
        self._endpoint = endpoint
        self._places = Register(max_per_viewer=most, max_per_address=most)

    async def answer(self, upload: Upload, params: Params, info: RequestInfo, reply: Reply) -> None:
        """Run a mutation while its file comes."""
        context = await self._endpoint.context(info)
        result = context
        if not isinstance(context, Result):
            viewer_id = self._endpoint.streams.viewer_id(context)
            place = self._places.enter(viewer_id, info.client_host)
            if place is None:
                many = f"You have {self.most} files on their way, which is the limit."
                result = Result.refused([failure("RATE_LIMITED", many, retryAfter=1)])
            else:
                try:
                    result = await self._run(params, info, context)
                finally:
                    self._places.leave(place)
        await upload.linger()
        await reply.result(result)

    async def _run(self, params: Params, info: RequestInfo, context: Any) -> Result:
        prepared = await self._endpoint.prepare(params, context, info.request_id)
        if isinstance(prepared, Result):
            return prepared
        if prepared.type != "mutation":
            return Result.refused([failure("BAD_REQUEST", "A file goes with a mutation alone.")])
        # However long the file takes: what bounds it is that it must keep coming.
        return await self._endpoint.execute(prepared, context, has_file=True)
