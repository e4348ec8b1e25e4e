// The part of the product's schema that is asked for, written as one writes it with graphql-tools.
import { makeExecutableSchema } from '@graphql-tools/schema';

const typeDefs = /* GraphQL */ `
  scalar DateTime
  enum ConversationStatus { ACTIVE ARCHIVED DELETED }
  enum MessageRole { USER ASSISTANT SYSTEM TOOL }
  interface Node { id: ID! }
  type User implements Node { id: ID! username: String! displayName: String! }
  type PageInfo {
    hasNextPage: Boolean!
    hasPreviousPage: Boolean!
    startCursor: String
    endCursor: String
  }
  type Message implements Node {
    id: ID!
    role: MessageRole!
    content: String!
    author: User
    conversation: Conversation
  }
  type MessageEdge { cursor: String! node: Message! }
  type MessageConnection { edges: [MessageEdge!]! nodes: [Message!]! pageInfo: PageInfo! }
  type Conversation implements Node {
    id: ID!
    title: String
    status: ConversationStatus!
    createdAt: DateTime!
    updatedAt: DateTime!
    user: User
    messages(first: Int = 20): MessageConnection!
  }
  type ConversationEdge { cursor: String! node: Conversation! }
  type ConversationConnection {
    edges: [ConversationEdge!]!
    nodes: [Conversation!]!
    pageInfo: PageInfo!
  }
  type Query {
    node(id: ID!): Node
    conversation(id: ID!): Conversation
    conversations(first: Int = 20): ConversationConnection!
  }
`;

const cursor = (...values) => Buffer.from(JSON.stringify(values)).toString('base64url');
const time = (text) => `${text.replace(' ', 'T')}+00:00`;
const messageCursor = (row) => cursor(row.id);
const conversationCursor = (row) => cursor(time(row.updated_at), row.id);

// One row more than asked for tells whether there is a next page.
const page = (rows, count, cursorOf) => ({ rows: rows.slice(0, count), more: rows.length > count, cursorOf });

const connection = {
  nodes: ({ rows }) => rows,
  edges: ({ rows, cursorOf }) => rows.map((node) => ({ cursor: cursorOf(node), node })),
  pageInfo: ({ rows, more, cursorOf }) => ({
    hasNextPage: more,
    hasPreviousPage: false,
    startCursor: rows.length ? cursorOf(rows[0]) : null,
    endCursor: rows.length ? cursorOf(rows.at(-1)) : null,
  }),
};

const kinds = { cnv: 'Conversation', msg: 'Message', usr: 'User' };
const kind = (id) => kinds[id.slice(0, 3)];

const resolvers = {
  ConversationStatus: { ACTIVE: 'active', ARCHIVED: 'archived', DELETED: 'deleted' },
  MessageRole: { USER: 'user', ASSISTANT: 'assistant', SYSTEM: 'system', TOOL: 'tool' },
  Node: { __resolveType: ({ id }) => kind(id) },
  Query: {
    node(_, { id }, { loaders }) {
      const found = { Conversation: loaders.conversations, Message: loaders.messages, User: loaders.users };
      return found[kind(id)]?.load(id) ?? null;
    },
    conversation: (_, { id }, { loaders }) => loaders.conversations.load(id),
    async conversations(_, { first }, { loaders, viewerId }) {
      return page(await loaders.firstConversations(viewerId, first + 1), first, conversationCursor);
    },
  },
  User: { displayName: (user) => user.display_name },
  Conversation: {
    createdAt: (conversation) => time(conversation.created_at),
    updatedAt: (conversation) => time(conversation.updated_at),
    user: ({ user_id }, _, { loaders }) => loaders.users.load(user_id),
    async messages({ id }, { first }, { loaders }) {
      return page(await loaders.firstMessages(id, first + 1), first, messageCursor);
    },
  },
  Message: {
    author: ({ user_id }, _, { loaders }) => (user_id ? loaders.users.load(user_id) : null),
    conversation: ({ conversation_id }, _, { loaders }) => loaders.conversations.load(conversation_id),
  },
  ConversationConnection: connection,
  MessageConnection: connection,
};

export const schema = makeExecutableSchema({ typeDefs, resolvers });
