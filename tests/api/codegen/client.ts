// A frontend's client, made of what was generated. Arguments: the server's URL and a token.
import type { TypedDocumentNode } from "@graphql-typed-document-node/core";
import { print } from "graphql";
import {
  CreateConversationDocument,
  CreateMemoryDocument,
  type CreateMemoryMutationVariables,
  MessagesDocument,
  SendDocument,
} from "./generated.js";

declare const process: { argv: string[] };
const [url, token] = process.argv.slice(2);

async function run<R, V>(document: TypedDocumentNode<R, V>, variables: V): Promise<R> {
  const answer = await fetch(`${url}/graphql`, {
    method: "POST",
    headers: { "content-type": "application/json", authorization: `Bearer ${token}` },
    body: JSON.stringify({ query: print(document), variables }),
  });
  const { data, errors } = (await answer.json()) as { data: R; errors?: { message: string }[] };
  if (errors) throw new Error(errors.map((error) => error.message).join("\n"));
  return data;
}

const { conversationCreate } = await run(CreateConversationDocument, { title: "Trees" });
const conversation = conversationCreate.conversation;
if (!conversation) throw new Error(JSON.stringify(conversationCreate.errors));
// @ts-expect-error: a payload's object may be null.
void conversationCreate.conversation.id;

await run(SendDocument, { id: conversation.id, content: "Hello" });
// @ts-expect-error: the content is required.
const incomplete: Parameters<typeof run<unknown, { id: string; content: string }>>[1] = { id: "x" };
void incomplete;

const read = await run(MessagesDocument, { id: conversation.id });
const roles: ("ASSISTANT" | "SYSTEM" | "TOOL" | "USER")[] = (
  read.conversation?.messages.nodes ?? []
).map((message) => message.role);

// @ts-expect-error: there is no such kind of memory.
const wrong: CreateMemoryMutationVariables = { input: { content: "x", type: "NOTHING" } };
void wrong;
const { memoryCreate } = await run(CreateMemoryDocument, { input: { content: "I like trees" } });
console.log(
  JSON.stringify({
    title: conversation.title,
    roles,
    memory: memoryCreate.memory?.content,
    errors: memoryCreate.errors,
  }),
);
