// Has a stream end after it told of an operation, and before the client reads that this was accepted.
// Given the server's address and a module that makes a client, prints what the client told. Tells the
// server when to end the stream.
import { pathToFileURL } from 'node:url';

const [url, path] = process.argv.slice(2);
const { fetch } = globalThis;
let end;
const ended = new Promise((resolve) => (end = resolve));
let isHeld = false;

let text = '';
function watch(chunk, controller) {
  controller.enqueue(chunk);
  const before = text;
  text += new TextDecoder().decode(chunk);
  if (before.includes('"number":2') || !text.includes('"number":2')) return;
  const body = JSON.stringify({ query: 'mutation { note(text: "seen") }' });
  const headers = { 'content-type': 'application/json' };
  fetch(url, { method: 'POST', headers, body }).catch((problem) => controller.error(problem));
}

globalThis.addEventListener ??= () => {};
globalThis.removeEventListener ??= () => {};
globalThis.fetch = async (address, init) => {
  const response = await fetch(address, init);
  if (init.method === 'GET') {
    const { readable, writable } = new TransformStream({ transform: watch });
    response.body.pipeTo(writable).catch(() => {}).finally(end);
    return new Response(readable, response);
  }
  if (init.method === 'POST' && !isHeld) {
    isHeld = true;
    await ended;
    // By the next turn the client, too, has read its stream to the end.
    await new Promise(setImmediate);
  }
  return response;
};

const { connect } = await import(pathToFileURL(path));
const client = connect({ token: async () => 'ann', expire() {} }, url);
const variables = { after: null };
const report = { numbers: [], error: null };
await new Promise((resolve) => {
  const query = 'subscription($after: String) { paced(to: 4, after: $after) { cursor number } }';
  client.subscribe({ query, variables }, {
    next({ data }) {
      variables.after = data.paced.cursor;
      report.numbers.push(data.paced.number);
    },
    error(problem) {
      report.error = String(problem);
      resolve();
    },
    complete: resolve,
  });
});
console.log(JSON.stringify(report));
// Not when the last timer of the client has run.
process.exit();
