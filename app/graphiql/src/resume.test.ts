import assert from "node:assert/strict";
import { test } from "node:test";
import { parse, print } from "graphql";
import { cursorOf, resumed } from "./resume";

const same = (left: string, right: string) => assert.equal(print(parse(left)), print(parse(right)));

test("a cursor goes into the variable that the document passes as after", () => {
  const query = "subscription S($id: ID!, $from: String) { events(id: $id, after: $from) { cursor } }";
  assert.deepEqual(resumed({ query, variables: { id: "1" } }, "c7"), { query, variables: { id: "1", from: "c7" } });
});

test("a document without after, or with a fixed one, is rewritten", () => {
  const wanted = 'subscription S { events(id: "1", after: "c7") { cursor } }';
  for (const query of [
    'subscription S { events(id: "1") { cursor } }',
    'subscription S { events(id: "1", after: "c2") { cursor } }',
  ]) {
    same(resumed({ query, variables: {} }, "c7").query, wanted);
  }
});

test("a cursor with quotes and backslashes stays one string", () => {
  const { query } = resumed({ query: "subscription { events { cursor } }" }, 'a"b\\c');
  same(query, 'subscription { events(after: "a\\"b\\\\c") { cursor } }');
});

test("of several operations the named one is resumed", () => {
  const query = "query Q { a } subscription S { events { cursor } }";
  same(
    resumed({ query, operationName: "S" }, "c1").query,
    'query Q { a } subscription S { events(after: "c1") { cursor } }',
  );
});

test("the cursor is read from the event whatever its field is called", () => {
  assert.equal(cursorOf({ data: { mine: { cursor: "c3" } } }), "c3");
  assert.equal(cursorOf({ data: { mine: { text: "no cursor selected" } } }), null);
  assert.equal(cursorOf({ data: null, errors: [{ message: "x" }] }), null);
});
