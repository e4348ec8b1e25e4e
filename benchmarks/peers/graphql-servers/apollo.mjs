// Apollo Server, standing alone.
import { ApolloServer } from '@apollo/server';
import { startStandaloneServer } from '@apollo/server/standalone';
import { Loaders } from './data.mjs';
import { schema } from './schema.mjs';

const viewerId = process.env.VIEWER_ID;
await startStandaloneServer(new ApolloServer({ schema }), {
  context: async () => ({ loaders: new Loaders(), viewerId }),
  listen: { port: Number(process.env.PORT), host: '127.0.0.1' },
});
