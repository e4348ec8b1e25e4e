"""How the document of a request is found and read, whatever transport it came by."""

from typing import Any

from app import graphql_budget
from app.graphql_documents import Documents
from app.graphql_request import Params
from schema.execution import Engine, Prepared, Result


async def prepare(
    engine: Engine, documents: Documents, params: Params, context: Any
) -> Prepared | Result:
    """Give what is to be run, or why nothing is; the viewer pays for the reading.

    Raises RequestError where the document is not even read.
    """
    graphql_budget.check(context)
    is_permitted = not documents.only_trusted or graphql_budget.may_run_anything(context)
    text = documents.text(params, is_permitted=is_permitted)
    is_new = text not in engine.documents
    prepared = await engine.prepare_async(text, params.operation_name, params.variables)
    is_refused = not isinstance(prepared, Prepared)
    if is_new or is_refused:
        await graphql_budget.charge_reading(context, text, is_new=is_new, is_refused=is_refused)
    if not isinstance(prepared, Prepared):
        return Result.refused(prepared)
    if params.document_id or params.extensions:
        documents.register(params)
    return prepared
