// Drives the graphql-sse client in its single connection mode and prints what it saw.
import { createClient } from 'graphql-sse';

const requests = [];
const url = process.argv[2];

function fetchFn(address, init) {
  requests.push(init.method);
  return fetch(address, init);
}

const options = {
  url,
  fetchFn,
  singleConnection: true,
  retryAttempts: 0,
  headers: { Authorization: 'Bearer ann' },
};
const client = createClient(options);

async function collect(payload, most = Infinity, from = client) {
  const seen = [];
  try {
    for await (const result of from.iterate(payload)) {
      seen.push(result);
      if (seen.length >= most) break;
    }
  } catch (error) {
    return { seen, error: error.response ? error.response.status : String(error) };
  }
  return { seen };
}

const report = {
  query: await collect({ query: '{ hello viewer }' }),
  mutation: await collect({ query: 'mutation { note(text: "from node") }' }),
  count: await collect({ query: 'subscription { count(to: 3) }' }),
  left: await collect({ query: 'subscription { forever }' }, 1),
  absent: await collect({ query: 'subscription { absent }' }),
  invalid: await collect({ query: '{ nothing }' }),
};
requests.length = 0;
report.together = await Promise.all(
  [1, 2, 3, 4].map((to) => collect({ query: `subscription { count(to: ${to}) }` })),
);
report.requests = [...requests];

// The server ends the stream once it hears that the second was seen: the client reserves another
// one and asks again, with the cursor it has by then.
const seen = JSON.stringify({ query: 'mutation { note(text: "seen") }' });
const headers = { 'content-type': 'application/json' };
const resuming = createClient({ ...options, retryAttempts: 5, retry: async () => {} });
const variables = { after: null };
report.resumed = [];
await new Promise((resolve, reject) => {
  const query = 'subscription($after: String) { paced(to: 4, after: $after) { cursor number } }';
  resuming.subscribe({ query, variables }, {
    next({ data }) {
      variables.after = data.paced.cursor;
      report.resumed.push(data.paced.number);
      if (data.paced.number === 2) fetch(url, { method: 'POST', headers, body: seen }).catch(reject);
    },
    error: reject,
    complete: resolve,
  });
});
client.dispose();
resuming.dispose();
console.log(JSON.stringify(report));
