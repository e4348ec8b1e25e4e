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
  let open: Row | null = null;
  for (const { number, at, result } of events) {
    const fields = (Object.values(result.data ?? {})[0] ?? {}) as Record<string, unknown>;
    const { __typename: typename, cursor: _cursor, offset, text, ...rest } = fields;
    const type = result.errors?.length ? "error" : typeof typename === "string" ? typename : "event";
    const isPiece = typeof offset === "number" && typeof text === "string";
    if (isPiece && open?.type === type && offset > 0) {
      open.text += text;
      open.count += 1;
      continue;
    }
    const shown = result.errors?.length
      ? result.errors.map((error) => error.message).join(" ")
      : [typeof text === "string" ? text.replace(/\n$/, "") : "", compact(rest)].filter(Boolean).join("  ");
    const row: Row = { number, at, type, text: shown, count: 1 };
    rows.push(row);
    open = isPiece ? row : null;
    if (isPiece) row.text = text;
  }
  return rows;
}

/** The remaining fields on one line; of a single object its fields, of ids and names the values. */
function compact(value: Record<string, unknown>): string {
  const entries = Object.entries(value).filter(([, item]) => item !== null && item !== undefined);
  // A single object, as a message or a step, speaks for itself: the row's type names it.
  if (entries.length === 1 && typeof entries[0]![1] === "object") return inline(entries[0]![1]);
  return entries.map(([name, item]) => `${name}: ${inline(item)}`).join("  ");
}

function inline(value: unknown): string {
  if (value === null || typeof value !== "object") return String(value);
  if (Array.isArray(value)) return `[${value.map(inline).join(", ")}]`;
  const parts = Object.entries(value)
    .filter(([name, item]) => name !== "__typename" && item !== null)
    .map(([name, item]) => (name === "id" ? null : `${name} ${typeof item === "string" ? quote(item) : inline(item)}`));
  return parts.filter(Boolean).join(", ") || String((value as { id?: unknown }).id ?? "{}");
}

function quote(text: string): string {
  return /^[A-Z][A-Z_]*$/.test(text) ? text : JSON.stringify(text);
}

export function kindOf(type: string): string {
  if (/Failed$|^error$/.test(type)) return "bad";
  if (/(Completed|Finished|Exited)$/.test(type)) return "good";
  if (/Reset$/.test(type)) return "odd";
  return "plain";
}
