import assert from "node:assert/strict";
import { test } from "node:test";
import { buildSchema, parse } from "graphql";
import { fill, idsIn, operationOf } from "./ids";

const schema = buildSchema(`
  interface Node { id: ID! }
  type Conversation implements Node { id: ID! title: String }
  type Message implements Node { id: ID! conversation: Conversation }
  type Plan implements Node { id: ID! steps: [PlanStep!]! }
  type PlanStep implements Node { id: ID! }
  type PlanExecution implements Node { id: ID! }
  type SandboxExecution implements Node { id: ID! }
  type MessagePayload { message: Message reply: Message }
  type PlanPayload { plan: Plan }
  type PlanExecutionPayload { execution: PlanExecution }
  input MessageSendInput { conversationId: ID! content: String! }
  type Query { node(id: ID!): Node conversation(id: ID!): Conversation }
  type Mutation {
    messageSend(input: MessageSendInput!): MessagePayload!
    planCreate: PlanPayload!
    planExecute(id: ID!): PlanExecutionPayload!
    planExecutionCancel(id: ID!): PlanExecutionPayload!
    sessionRevoke(id: ID): Boolean
    nodeTouch(id: ID!): Node
  }
  type Subscription {
    planExecutionEvents(executionId: ID!, after: String): String
    sandboxExecutionOutput(executionId: ID!, after: String): String
  }
`);

const ids = { Conversation: "c", Plan: "p", PlanExecution: "pe", SandboxExecution: "se" };

function filledIn(text: string, given: Record<string, unknown> = {}) {
  const operation = operationOf(parse(text))!;
  return fill(schema, operation, given, ids);
}

test("a variable named after a type gets the last id of that type", () => {
  const result = filledIn(
    `mutation M($conversationId: ID!) { messageSend(input: {conversationId: $conversationId, content: ""}) { message { id } } }`,
  );
  assert.deepEqual(result.variables, { conversationId: "c" });
  assert.deepEqual(result.filled, [{ name: "conversationId", type: "Conversation", id: "c" }]);
});

test("the place of use tells what a variable with another name asks for", () => {
  const cases: [string, string][] = [
    ["mutation M($x: ID!) { planExecute(id: $x) { execution { id } } }", "p"],
    ["mutation M($id: ID!) { planExecutionCancel(id: $id) { execution { id } } }", "pe"],
    ["subscription S($executionId: ID!) { planExecutionEvents(executionId: $executionId) }", "pe"],
    ["subscription S($executionId: ID!) { sandboxExecutionOutput(executionId: $executionId) }", "se"],
    ["query Q($id: ID!) { conversation(id: $id) { title } }", "c"],
  ];
  for (const [text, id] of cases) assert.deepEqual(Object.values(filledIn(text).variables), [id], text);
});

test("a given value is kept, and an empty one counts as missing", () => {
  const text = "query Q($id: ID!) { conversation(id: $id) { title } }";
  assert.deepEqual(filledIn(text, { id: "mine" }).variables, { id: "mine" });
  assert.deepEqual(filledIn(text, { id: "" }).variables, { id: "c" });
});

test("optional ids, and ids of no certain type, are left alone", () => {
  assert.deepEqual(filledIn("mutation M($id: ID) { sessionRevoke(id: $id) }").variables, {});
  assert.deepEqual(filledIn("query Q($id: ID!) { node(id: $id) { id } }"), { variables: {}, filled: [], missing: [] });
  assert.deepEqual(filledIn('query Q($id: ID! = "d") { conversation(id: $id) { title } }').variables, {});
});

test("an id that nothing has created yet is reported with its type", () => {
  const operation = operationOf(parse("query Q($id: ID!) { conversation(id: $id) { title } }"))!;
  assert.deepEqual(fill(schema, operation, {}, {}).missing, [{ name: "id", type: "Conversation" }]);
});

test("ids are found in a mutation's answer through aliases, lists and fragments", () => {
  const text = `
    mutation M {
      made: planCreate { plan { id steps { ...step } } }
      messageSend(input: {conversationId: "c", content: ""}) { message { key: id conversation { id } } reply { id } }
      nodeTouch(id: "x") { ... on Conversation { __typename } ... on PlanExecution { __typename id } }
    }
    fragment step on PlanStep { id }
  `;
  const document = parse(text);
  const data = {
    made: { plan: { id: "p1", steps: [{ id: "s1" }, { id: "s2" }] } },
    messageSend: { message: { key: "m1", conversation: { id: "c1" } }, reply: { id: "m2" } },
    nodeTouch: { __typename: "PlanExecution", id: "e1" },
  };
  assert.deepEqual(idsIn(schema, document, operationOf(document)!, data), {
    Plan: "p1",
    PlanStep: "s2",
    Message: "m2",
    Conversation: "c1",
    PlanExecution: "e1",
  });
});

test("a null payload has no ids", () => {
  const document = parse("mutation M { planCreate { plan { id } } }");
  assert.deepEqual(idsIn(schema, document, operationOf(document)!, { planCreate: { plan: null } }), {});
});
