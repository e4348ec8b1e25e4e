// Asks for the same in pieces with Apollo Client, in both forms, and with urql; prints what each saw.
import { ApolloClient, HttpLink, InMemoryCache, gql } from '@apollo/client';
import { Defer20220824Handler, GraphQL17Alpha9Handler } from '@apollo/client/incremental';
import { Client, fetchExchange, gql as urqlGql } from '@urql/core';

const [url, query] = process.argv.slice(2);

// The gate that a deferred field waits for is opened once a client has shown the first piece.
const open = () =>
  fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ query: 'mutation { open(name: "a") }' }),
  });
const shut = () =>
  fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ query: 'mutation { shut(name: "a") }' }),
  });

async function apollo(incrementalHandler) {
  await shut();
  const client = new ApolloClient({
    link: new HttpLink({ uri: url }),
    cache: new InMemoryCache(),
    incrementalHandler,
  });
  const seen = [];
  await new Promise((resolve, reject) => {
    const watching = client.watchQuery({ query: gql(query), errorPolicy: 'all' }).subscribe({
      next(result) {
        if (result.data === undefined) return;
        seen.push({
          data: result.data,
          state: result.dataState,
          loading: result.loading,
          errors: result.error ? result.error.errors.map((error) => error.extensions.code) : [],
        });
        if (seen.length === 1) open();
        if (!result.loading) {
          watching.unsubscribe();
          resolve();
        }
      },
      error: reject,
    });
  });
  client.stop();
  return seen;
}

async function urql() {
  await shut();
  const client = new Client({ url, exchanges: [fetchExchange], preferGetMethod: false });
  const seen = [];
  await new Promise((resolve) => {
    const { unsubscribe } = client.query(urqlGql(query), {}).subscribe((result) => {
      seen.push({
        data: result.data,
        hasNext: result.hasNext,
        errors: result.error ? result.error.graphQLErrors.map((e) => e.extensions.code) : [],
      });
      if (seen.length === 1) open();
      if (!result.hasNext) {
        setTimeout(() => unsubscribe());
        resolve();
      }
    });
  });
  return seen;
}

const report = {
  apolloByPath: await apollo(new Defer20220824Handler()),
  apolloById: await apollo(new GraphQL17Alpha9Handler()),
  urql: await urql(),
};
console.log(JSON.stringify(report));
