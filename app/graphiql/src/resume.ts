import { type DocumentNode, Kind, parse, print, visit } from "graphql";
import type { GraphQLParams, GraphQLResult } from "./http";
import { operationOf } from "./ids";

/** The cursor of the newest event: every event of every subscription carries one. */
export function cursorOf(result: GraphQLResult): string | null {
  for (const event of Object.values(result.data ?? {})) {
    const cursor = (event as { cursor?: unknown } | null)?.cursor;
    if (typeof cursor === "string") return cursor;
  }
  return null;
}

/**
 * The parameters that go on where `cursor` was: the subscription's `after` is set to it, in the
 * variables when the document takes it from there, else in the document itself.
 */
export function resumed(params: GraphQLParams, cursor: string): GraphQLParams {
  const document = parse(params.query, { noLocation: true });
  const operation = operationOf(document, params.operationName);
  const field = operation?.selectionSet.selections.find((node) => node.kind === Kind.FIELD);
  if (!operation || !field) return params;
  const after = field.arguments?.find((argument) => argument.name.value === "after");
  if (after?.value.kind === Kind.VARIABLE) {
    const name = after.value.name.value;
    return { ...params, variables: { ...params.variables, [name]: cursor } };
  }
  const argument = {
    kind: Kind.ARGUMENT,
    name: { kind: Kind.NAME, value: "after" },
    value: { kind: Kind.STRING, value: cursor },
  } as const;
  const others = (field.arguments ?? []).filter((node) => node !== after);
  const changed: DocumentNode = visit(document, {
    Field: (node) => (node === field ? { ...node, arguments: [...others, argument] } : undefined),
  });
  return { ...params, query: print(changed) };
}
