const SECRETS = "password|token|refreshToken|currentPassword|newPassword";
// A quote may be escaped several times over, since editors' texts lie in JSON within JSON.
const QUOTE = String.raw`(\\*")`;
const IN_JSON = new RegExp(String.raw`${QUOTE}(${SECRETS})\1(\s*:\s*)\1((?:(?!\1).)*)\1`, "gs");
const IN_QUERY = new RegExp(String.raw`\b(${SECRETS})(\s*:\s*)${QUOTE}((?:(?!\3).)*)\3`, "gs");

/** Blank passwords and tokens in a text GraphiQL wants to keep; `spared` values stay. */
export function redact(text: string, spared: readonly string[] = []): string {
  return text
    .replace(IN_JSON, (whole, quote: string, name: string, colon: string, value: string) =>
      spared.includes(value) ? whole : `${quote}${name}${quote}${colon}${quote}${quote}`,
    )
    .replace(IN_QUERY, (whole, name: string, colon: string, quote: string, value: string) =>
      spared.includes(value) ? whole : `${name}${colon}${quote}${quote}`,
    );
}

/** localStorage for tabs, history and settings, that never keeps a password or a token. */
export class RedactingStorage {
  constructor(
    private readonly spared: readonly string[],
    private readonly storage: Storage = window.localStorage,
  ) {}

  get length(): number {
    return this.storage.length;
  }

  getItem(key: string): string | null {
    return this.storage.getItem(key);
  }

  setItem(key: string, value: string): void {
    this.storage.setItem(key, redact(value, this.spared));
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
