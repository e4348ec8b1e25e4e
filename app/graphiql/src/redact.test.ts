import assert from "node:assert/strict";
import { test } from "node:test";
import { redact } from "./redact";

test("passwords and tokens are blanked however deep the text is quoted", () => {
  const variables = { username: "ada", password: 'se"cr\\et', refreshToken: "r", token: "t" };
  const blanked = { username: "ada", password: "", refreshToken: "", token: "" };
  const tabs = (text: string) => JSON.stringify({ tabs: [{ variables: text }], activeTabIndex: 0 });
  for (const space of [0, 2]) {
    const text = JSON.stringify(variables, null, space);
    const wanted = JSON.stringify(blanked, null, space);
    assert.equal(redact(text), wanted);
    assert.equal(redact(tabs(text)), tabs(wanted));
    assert.equal(redact(tabs(tabs(text))), tabs(tabs(wanted)));
  }
});

test("text that is no JSON yet, or has comments, is blanked too", () => {
  assert.equal(redact('{ "password": "x", // mine\n "a": 1.0 '), '{ "password": "", // mine\n "a": 1.0 ');
  assert.equal(redact('{a(password: """x\n"y" """)}'), '{a(password: "")}');
});

test("literals in a query are blanked, also inside JSON", () => {
  const query = 'mutation { sessionCreate(input: {login: "ada", password: "secret"}) { session { token } } }';
  assert.equal(
    redact(query),
    'mutation { sessionCreate(input: {login: "ada", password: ""}) { session { token } } }',
  );
  assert.deepEqual(JSON.parse(redact(JSON.stringify({ query }))), { query: redact(query) });
});

test("other text and spared values stay", () => {
  const text = JSON.stringify({ password: "example", title: "my password: none", cursor: "token" });
  assert.equal(redact(text, ["example"]), text);
});

test("variables of the same names keep their types", () => {
  const query = "mutation M($password: String!) { userRegister(input: {password: $password}) { user { id } } }";
  assert.equal(redact(query), query);
});
