// graphql-yoga, and with the word `jit` graphql-yoga whose operations graphql-jit compiles.
import { createServer } from 'node:http';
import { useGraphQlJit } from '@envelop/graphql-jit';
import { createYoga } from 'graphql-yoga';
import { Loaders } from './data.mjs';
import { schema } from './schema.mjs';

const viewerId = process.env.VIEWER_ID;
const yoga = createYoga({
  schema,
  context: () => ({ loaders: new Loaders(), viewerId }),
  plugins: process.argv[2] === 'jit' ? [useGraphQlJit()] : [],
  graphiql: false,
  landingPage: false,
  logging: 'error',
});
createServer(yoga).listen(Number(process.env.PORT), '127.0.0.1');
