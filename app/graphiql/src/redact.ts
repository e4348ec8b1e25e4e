const SECRETS = new Set(["password", "currentPassword", "newPassword", "token", "refreshToken"]);
const NAMES = [...SECRETS].join("|");
const STRING = String.raw`"""[\s\S]*?"""|"(?:[^"\\]|\\.)*"`;
/** `name: "value"` of a GraphQL document, or `"name": "value"` of JSON with or without comments. */
const PAIR = new RegExp(String.raw`(\b(?:${NAMES})\b"?\s*:\s*)(${STRING})`, "g");

/** Blank passwords and tokens in a text GraphiQL wants to keep; `spared` values stay. */
export function redact(text: string, spared: readonly string[] = []): string {
  const value = machineMade(text);
  if (value !== undefined) return JSON.stringify(inside(value, spared));
  return text.replace(PAIR, (whole, name: string, quoted: string) =>
    spared.some((one) => JSON.stringify(one) === quoted) ? whole : `${name}""`,
  );
}

/** The value of a text that JSON.stringify wrote; what a person typed keeps its shape instead. */
function machineMade(text: string): unknown {
  if (!text.startsWith("{") && !text.startsWith("[")) return undefined;
  try {
    const value: unknown = JSON.parse(text);
    return JSON.stringify(value) === text ? value : undefined;
  } catch {
    return undefined;
  }
}

function inside(value: unknown, spared: readonly string[]): unknown {
  if (typeof value === "string") return redact(value, spared);
  if (Array.isArray(value)) return value.map((item) => inside(item, spared));
  if (value === null || typeof value !== "object") return value;
  const entries = Object.entries(value).map(([name, item]) => {
    const isSecret = SECRETS.has(name) && typeof item === "string" && !spared.includes(item);
    return [name, isSecret ? "" : inside(item, spared)];
  });
  return Object.fromEntries(entries) as unknown;
}

const APART = new Set(["graphiql:query", "graphiql:variables", "graphiql:headers"]);

/** localStorage for tabs, history and settings, that never keeps a password or a token. */
export class RedactingStorage {
  constructor(
    private readonly spared: readonly string[],
    private readonly storage: Storage = window.localStorage,
  ) {}

  get length(): number {
    return this.storage.length;
  }

  /**
   * The texts typed last are kept with their tab. GraphiQL keeps them apart as well, and opens one
   * more tab whenever the two differ, so it does not find them here.
   */
  getItem(key: string): string | null {
    return APART.has(key) ? null : this.storage.getItem(key);
  }

  setItem(key: string, value: string): void {
    if (!APART.has(key)) this.storage.setItem(key, redact(value, this.spared));
  }

  removeItem(key: string): void {
    this.storage.removeItem(key);
  }

  /** GraphiQL's "clear storage" leaves the session alone. */
  clear(): void {
    for (const key of Object.keys(this.storage)) {
      if (key.startsWith("graphiql:")) this.storage.removeItem(key);
    }
  }
}
