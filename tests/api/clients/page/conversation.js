// Stands in for the page's conversation.js: the same, and it writes down what is told.
import { apply as documented } from './conversation.documented.js';
export * from './conversation.documented.js';

export const told = [];
export const problems = [];

export function apply(state, event) {
  check(state, event);
  told.push({ kind: event.__typename, id: event.message?.id, offset: event.offset, text: event.text });
  return documented(state, event);
}

function check(state, { __typename: kind, message, offset, cursor }) {
  const known = state.messages.find(({ id }) => id === message?.id);
  const isFinal = ['COMPLETED', 'FAILED', 'STOPPED'].includes(known?.status) && known.role === 'ASSISTANT';
  if (cursor === state.cursor) problems.push(`the cursor did not move: ${cursor}`);
  if (kind === 'MessageAdded' && known) problems.push(`added twice: ${message.id}`);
  if (kind === 'MessageDelta' && offset !== [...known.content].length)
    problems.push(`offset ${offset} after ${[...known.content].length} characters`);
  if (kind !== 'ConversationReset' && isFinal) problems.push(`${kind} after the end`);
}
