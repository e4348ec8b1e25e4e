// Runs the documented clients in a page, as told by the test.
import { gql } from '@apollo/client';
import * as apollo from './apollo.js';
import { EMPTY, problems, told } from './conversation.js';
import * as eventSource from './event-source.js';
import * as graphqlSse from './graphql-sse.js';
import * as graphqlSseSingle from './graphql-sse-single.js';
import * as graphqlWs from './graphql-ws.js';
import { open } from './page.js';
import { Session, post } from './session.js';
import * as urqlHttp from './urql-http.js';
import * as urql from './urql.js';

const session = new Session(() => shown.problems.push('signed out'));
const shown = { state: null, problems: [], closes: [], renewals: 0, seats: {} };
const waiting = new Set();

const SEND = `mutation Send($id: ID!, $content: String!) {
  messageSend(input: { conversationId: $id, content: $content }) { reply { id } errors { message } } }`;

const { keep } = Session.prototype;
Session.prototype.keep = function kept(given) {
  keep.call(this, given);
  shown.renewals++;
  look();
};

/** The documented clients: what follows a conversation, and what sends a message. */
const CLIENTS = {
  'graphql-ws': () => over(graphqlWs, socket(), graphqlWs.execute),
  'graphql-sse': () => over(graphqlSse, graphqlSse.connect(session), byPost),
  'graphql-sse-single': () => over(graphqlSseSingle, graphqlSseSingle.connect(session), byPost),
  'event-source': () => over(eventSource, session, byPost),
  'apollo-ws': () => over(apollo, apollo.connect(session, socket()), byApollo),
  'apollo-http': () => over(apollo, apollo.connectOverHttp(session), byApollo),
  'urql-ws': () => over(urql, urql.connect(session, socket()), byUrql),
  'urql-http': () => over(urqlHttp, urqlHttp.connect(session), byUrql),
};

const over = ({ follow }, client, execute) => ({
  follow: (...given) => follow(client, ...given),
  execute: (variables) => execute(client, SEND, variables),
});
const byPost = async (_, query, variables) => post(query, variables, await session.token());
const byApollo = async (client, query, variables) =>
  (await client.mutate({ mutation: gql(query), variables })).data;
const byUrql = async (client, query, variables) =>
  (await client.mutation(query, variables).toPromise()).data;

const socket = () => listening(graphqlWs.connect(session));

function listening(client) {
  client.on('closed', ({ code }) => {
    shown.closes.push(code);
    look();
  });
  return client;
}

const sitting = (kind) => (state, problem) => {
  shown.seats[kind] = state;
  draw(state, problem);
};

function draw(state, problem) {
  shown.state = state;
  if (problem) shown.problems.push(problem.message ?? String(problem));
  document.querySelector('ol').replaceChildren(...state.messages.map(({ role, status, content }) => {
    const line = document.createElement('li');
    line.className = role.toLowerCase();
    line.dataset.status = status;
    line.textContent = content;
    return line;
  }));
  look();
}

const look = () => waiting.forEach((waiter) => waiter());

globalThis.harness = {
  session,
  shown,
  told,
  problems,

  start(kind, id) {
    document.querySelector('h1').textContent = kind;
    const { follow, execute } = CLIENTS[kind]();
    harness.leave = open(follow, id, draw);
    harness.send = async (content) => (await execute({ id, content })).messageSend.reply.id;
  },

  /** Has clients of a server elsewhere follow, with a token that was got somehow. */
  away(url, token, id) {
    const known = { token: async () => token, expire() {}, kept: { renewAt: Date.now() + 3_600_000 } };
    const clients = {
      'graphql-ws': over(graphqlWs, listening(graphqlWs.connect(known, url.replace('http', 'ws')))),
      'graphql-sse': over(graphqlSse, graphqlSse.connect(known, url)),
      'event-source': { follow: (...given) => eventSource.follow(known, ...given, url) },
    };
    for (const [kind, { follow }] of Object.entries(clients)) follow(id, EMPTY, sitting(kind));
  },

  /** Has several clients follow the same conversation side by side. */
  all(kinds, id) {
    for (const kind of kinds) CLIENTS[kind]().follow(id, EMPTY, sitting(kind));
  },

  /** Runs the page's main.js, which names what is its reader's own. */
  async main(id) {
    document.querySelector('h1').textContent = 'main.js';
    Object.assign(globalThis, { conversationId: id, draw });
    await import('./main.js');
  },

  /** Comes true as soon as `condition(shown, told)` does. */
  until(condition) {
    return new Promise((resolve) => {
      const waiter = () => {
        if (!condition(shown, told)) return;
        waiting.delete(waiter);
        resolve(true);
      };
      waiting.add(waiter);
      waiter();
    });
  },
};
