/**
 * The peer: a graphql-ws server with an in-memory pub/sub, written for speed.
 *
 * It speaks on its standard streams, a JSON message a line. It says `{"port"}` once it listens, and
 * answers `{"burst": {topics, first, count}}` and `{"paced": {topics, first, count, rate}}` with
 * `{"begun"}`, the time of the first publish in nanoseconds of the monotonic clock.
 */
import { EventEmitter } from 'node:events';
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';
import { setTimeout as pause } from 'node:timers/promises';
import { buildSchema } from 'graphql';
import { useServer } from 'graphql-ws/use/ws';
import { WebSocketServer } from 'ws';

const TEXT_CHARS = 200;
const FILLER = 'abcdefghijklmnopqrstuvwxyz'.repeat(10);
const BACKLOG = 2048;

/** As many characters as a cursor of the product has. */
const cursorChars = Number(process.argv[2]);

const schema = buildSchema(`
  type Query { version: String! }
  interface ConversationEvent { cursor: String! }
  type ConversationReset implements ConversationEvent { cursor: String! }
  type MessageDelta implements ConversationEvent {
    cursor: String!
    offset: Int!
    text: String!
  }
  type Subscription { conversationEvents(conversationId: ID!): ConversationEvent! }
`);

const bus = new EventEmitter();
bus.setMaxListeners(0);

/** The events of one topic, after a first one of the subscriber's own. */
class Events {
  #topic;
  #values;
  #waiting = [];
  #isOver = false;

  constructor(topic, first) {
    this.#topic = topic;
    this.#values = [first];
    bus.on(topic, this.#push);
  }

  #push = (value) => {
    const resolve = this.#waiting.shift();
    if (resolve) resolve({ value, done: false });
    else this.#values.push(value);
  };

  next() {
    if (this.#values.length) {
      return Promise.resolve({ value: this.#values.shift(), done: false });
    }
    if (this.#isOver) return Promise.resolve({ value: undefined, done: true });
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  return() {
    this.#isOver = true;
    bus.off(this.#topic, this.#push);
    for (const resolve of this.#waiting) resolve({ value: undefined, done: true });
    this.#values = this.#waiting = [];
    return Promise.resolve({ value: undefined, done: true });
  }

  throw(error) {
    this.return();
    return Promise.reject(error);
  }

  [Symbol.asyncIterator]() {
    return this;
  }
}

const reset = {
  conversationEvents: { __typename: 'ConversationReset', cursor: '0'.padStart(cursorChars, 'c') },
};
schema.getSubscriptionType().getFields().conversationEvents.subscribe = (_root, args) =>
  new Events(args.conversationId, reset);

const pad = (number, digits) => String(number).padStart(digits, '0');

function delta(topic, number, isLast, now) {
  const head = `[${pad(topic, 5)}.${pad(number, 7)}@${pad(now, 19)}]`;
  const tail = isLast ? '|END' : '';
  const start = number % 26;
  const length = TEXT_CHARS - head.length - tail.length;
  return {
    conversationEvents: {
      __typename: 'MessageDelta',
      cursor: String(number).padStart(cursorChars, 'c'),
      offset: number * TEXT_CHARS,
      text: head + FILLER.slice(start, start + length) + tail,
    },
  };
}

const now = () => process.hrtime.bigint();

function publish(topics, number, isLast) {
  for (let topic = 0; topic < topics; topic++) {
    bus.emit(`topic-${topic}`, delta(topic, number, isLast, now()));
  }
}

async function burst({ topics, first, count }) {
  const begun = now();
  for (let number = first; number < first + count; number++) {
    publish(topics, number, number === first + count - 1);
    // The sockets are written to while more is published, as when it comes from elsewhere.
    await new Promise(setImmediate);
  }
  return begun;
}

async function paced({ topics, first, count, rate }) {
  const begun = now();
  for (let number = first; number < first + count; number++) {
    const due = begun + BigInt(Math.round(((number - first) * 1e9) / rate));
    const left = Number(due - now()) / 1e6;
    if (left > 0) await pause(left);
    publish(topics, number, number === first + count - 1);
  }
  return begun;
}

const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);

const http = createServer((_request, response) => response.writeHead(404).end());
useServer({ schema }, new WebSocketServer({ server: http, path: '/graphql' }));
http.listen(0, '127.0.0.1', BACKLOG, () => say({ port: http.address().port }));

for await (const line of createInterface({ input: process.stdin })) {
  const message = JSON.parse(line);
  const begun = await (message.burst ? burst(message.burst) : paced(message.paced));
  say({ begun: String(begun) });
}
process.exit(0);
