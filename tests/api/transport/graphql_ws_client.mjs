// Drives the graphql-ws client through its operations and prints what it saw.
import { createClient } from 'graphql-ws';
import WebSocket from 'ws';

const closes = [];
const client = createClient({
  url: process.argv[2],
  webSocketImpl: WebSocket,
  lazy: true,
  lazyCloseTimeout: 0,
  retryAttempts: 0,
  connectionParams: { Authorization: 'Bearer ann' },
  on: { closed: (event) => closes.push(event.code) },
});

async function collect(payload, most = Infinity) {
  const seen = [];
  try {
    for await (const result of client.iterate(payload)) {
      seen.push(result);
      if (seen.length >= most) break;
    }
  } catch (error) {
    return { seen, error };
  }
  return { seen };
}

const report = {
  query: await collect({ query: '{ hello viewer }' }),
  mutation: await collect({ query: 'mutation { note(text: "from node") }' }),
  count: await collect({ query: 'subscription { count(to: 3) }' }),
  left: await collect({ query: 'subscription { forever }' }, 1),
  invalid: await collect({ query: '{ nothing }' }),
  together: await Promise.all(
    [1, 2, 3, 4].map((to) => collect({ query: `subscription { count(to: ${to}) }` })),
  ),
};
await client.dispose();
console.log(JSON.stringify({ ...report, closes }));
