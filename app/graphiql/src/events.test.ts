import assert from "node:assert/strict";
import { test } from "node:test";
import { merge } from "./events";

const event = (number: number, fields: Record<string, unknown>) => ({
  number,
  at: number * 100,
  result: { data: { conversationEvents: { cursor: `c${number}`, ...fields } } },
});

test("pieces of one streamed text share a row", () => {
  const rows = merge([
    event(1, { __typename: "MessageAdded", message: { id: "m", role: "USER", content: "hi" } }),
    event(2, { __typename: "MessageDelta", offset: 0, text: "Hel" }),
    event(3, { __typename: "MessageDelta", offset: 3, text: "lo" }),
    event(4, { __typename: "MessageCompleted", message: { id: "m", status: "COMPLETED" } }),
    event(5, { __typename: "MessageDelta", offset: 0, text: "Next" }),
  ]);
  assert.deepEqual(
    rows.map(({ type, text, count }) => [type, text, count]),
    [
      ["MessageAdded", 'role USER, content "hi"', 1],
      ["MessageDelta", "Hello", 2],
      ["MessageCompleted", "status COMPLETED", 1],
      ["MessageDelta", "Next", 1],
    ],
  );
});

test("pieces of parallel texts go to the row of their own step", () => {
  const piece = (number: number, step: string, offset: number, text: string) =>
    event(number, { __typename: "PlanStepOutput", stepExecution: { step: { orderIndex: step } }, offset, text });
  const rows = merge([piece(1, "b", 0, "B"), piece(2, "c", 0, "C"), piece(3, "b", 1, "b"), piece(4, "c", 1, "c")]);
  assert.deepEqual(
    rows.map(({ text, count }) => [text, count]),
    [
      ['step orderIndex "b"  Bb', 2],
      ['step orderIndex "c"  Cc', 2],
    ],
  );
});

test("lines of output keep a row and a time each", () => {
  const rows = merge([1, 2].map((n) => event(n, { __typename: "SandboxOutputChunk", stream: "STDOUT", text: `line ${n}\n` })));
  assert.deepEqual(
    rows.map(({ at, text }) => [at, text]),
    [
      [100, "line 1  stream: STDOUT"],
      [200, "line 2  stream: STDOUT"],
    ],
  );
});

test("an error is a row of its own", () => {
  const rows = merge([{ number: 1, at: 0, result: { errors: [{ message: "No." }] } }]);
  assert.deepEqual(rows, [{ number: 1, at: 0, type: "error", text: "No.", count: 1 }]);
});
