// What the servers on MySQL read with: a pool, and one set of dataloaders for every request.
import DataLoader from 'dataloader';
import mysql from 'mysql2/promise';

const USER = 'id, username, display_name';
const CONVERSATION = 'id, user_id, title, status, created_at, updated_at';
const MESSAGE = 'id, conversation_id, user_id, role, content';

export const pool = mysql.createPool({
  uri: process.env.DATABASE_URL,
  connectionLimit: 20,
  dateStrings: true,
  timezone: 'Z',
});

const select = async (sql, parameters) => (await pool.query(sql, parameters))[0];

function byId(table, columns) {
  return new DataLoader(async (ids) => {
    const rows = await select(`SELECT ${columns} FROM ${table} WHERE id IN (?)`, [ids]);
    const found = new Map(rows.map((row) => [row.id, row]));
    return ids.map((id) => found.get(id) ?? null);
  });
}

// The first messages of each conversation: every part of the union is a range of the index.
function firstMessages(count) {
  const part = `(SELECT ${MESSAGE} FROM messages WHERE conversation_id = ? ORDER BY id LIMIT ?)`;
  return new DataLoader(async (ids) => {
    const rows = await select(
      ids.map(() => part).join(' UNION ALL '),
      ids.flatMap((id) => [id, count]),
    );
    const found = new Map(ids.map((id) => [id, []]));
    for (const row of rows) found.get(row.conversation_id).push(row);
    return ids.map((id) => found.get(id));
  });
}

export class Loaders {
  users = byId('users', USER);
  conversations = byId('conversations', CONVERSATION);
  messages = byId('messages', MESSAGE);
  #firstMessages = new Map();

  firstMessages(conversationId, count) {
    let loader = this.#firstMessages.get(count);
    if (!loader) this.#firstMessages.set(count, (loader = firstMessages(count)));
    return loader.load(conversationId);
  }

  firstConversations(userId, count) {
    return select(
      `SELECT ${CONVERSATION} FROM conversations WHERE user_id = ?
        ORDER BY updated_at DESC, id DESC LIMIT ?`,
      [userId, count],
    );
  }
}
