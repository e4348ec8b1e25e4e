import type { StreamEvent } from "./runs";

export interface Row {
  number: number;
  at: number;
  type: string;
  text: string;
  count: number;
}

/** One row per event, but pieces of one streamed text, which say their `offset`, in one row. */
export function merge(events: readonly StreamEvent[]): Row[] {
  const rows: Row[] = [];
  // Texts of parallel steps arrive in turns, so several may be growing; any other event ends them.
  const growing = new Map<string, Row>();
  for (const { number, at, result } of events) {
    const fields = (Object.values(result.data ?? {})[0] ?? {}) as Record<string, unknown>;
    const { __typename: typename, cursor: _cursor, offset, text, ...rest } = fields;
    const hasFailed = Boolean(result.errors?.length);
    const type = hasFailed ? "error" : typeof typename === "string" ? typename : "event";
    const isPiece = !hasFailed && typeof offset === "number" && typeof text === "string";
    const key = isPiece ? JSON.stringify([type, rest]) : "";
    const before = growing.get(key);
    if (before && isPiece && offset > 0) {
      before.text += text;
      before.count += 1;
      continue;
    }
    const words = typeof text === "string" ? (isPiece ? text : text.replace(/\n$/, "")) : "";
    const parts = isPiece ? [compact(rest), words] : [words, compact(rest)];
    const shown = hasFailed ? result.errors!.map((error) => error.message) : parts.filter(Boolean);
    const row: Row = { number, at, type, text: shown.join("  "), count: 1 };
    rows.push(row);
    if (isPiece) growing.set(key, row);
    else growing.clear();
  }
  return rows;
}

/** The remaining fields on one line; of a single object its fields, of ids and names the values. */
function compact(value: Record<string, unknown>): string {
  const entries = Object.entries(value).filter(([, item]) => !isEmpty(item));
  // A single object, as a message or a step, speaks for itself: the row's type names it.
  if (entries.length === 1 && typeof entries[0]![1] === "object") return inline(entries[0]![1]);
  return entries.map(([name, item]) => `${name}: ${inline(item)}`).join("  ");
}

/** What a row need not say: nulls, empty texts and empty lists. */
function isEmpty(value: unknown): boolean {
  return value === null || value === undefined || value === "" || (Array.isArray(value) && value.length === 0);
}

function inline(value: unknown): string {
  if (value === null || typeof value !== "object") return String(value);
  if (Array.isArray(value)) return `[${value.map(inline).join(", ")}]`;
  const parts = Object.entries(value)
    .filter(([name, item]) => name !== "__typename" && !isEmpty(item))
    .map(([name, item]) => (name === "id" ? null : `${name} ${typeof item === "string" ? quote(item) : inline(item)}`));
  return parts.filter(Boolean).join(", ") || String((value as { id?: unknown }).id ?? "{}");
}

function quote(text: string): string {
  return /^[A-Z][A-Z_]*$/.test(text) ? text : JSON.stringify(text);
}

/** How a row is coloured. A reset is usual as the first event, and worth a look as a later one. */
export function kindOf({ type, number }: Row): string {
  if (/Failed$|^error$/.test(type)) return "bad";
  if (/(Completed|Finished|Exited)$/.test(type)) return "good";
  if (/Reset$/.test(type) && number > 1) return "odd";
  return "plain";
}
