import { useEffect, useLayoutEffect, useRef, useState } from "react";
import { useStored } from "./account";
import type { Engine } from "./engine";
import { STATUS_WORDS, type Stream, type StreamEvent } from "./runs";

/** Rows drawn at a time; the newest ones. */
const ROWS = 300;

/** Below the response: every subscription of this page, whichever tab is in front. */
export function Live({ engine }: { engine: Engine }) {
  const streams = useStored(engine.streams);
  const filled = useStored(engine.filled);
  const [chosen, choose] = useState<Stream | null>(null);
  const newest = streams.at(-1) ?? null;
  useEffect(() => choose(newest), [newest]);
  const shown = chosen && streams.includes(chosen) ? chosen : newest;
  return (
    <>
      {filled.length > 0 && (
        <p className="noo-filled" role="status">
          Filled in:{" "}
          {filled.map(({ name, type, id }) => (
            <span key={name} title={`the last ${type}`}>
              <code>${name}</code> = <code>{id}</code>
            </span>
          ))}
        </p>
      )}
      {shown && (
        <section className="noo-live" aria-label="Live events">
          <header className="noo-live-head">
            <span className="noo-live-title">Live events</span>
            <div className="noo-chips" role="tablist" aria-label="Streams">
              {streams.map((stream) => (
                <Chip key={stream.id} stream={stream} active={stream === shown} choose={() => choose(stream)} />
              ))}
            </div>
            <Controls engine={engine} stream={shown} />
          </header>
          <Events key={shown.id} stream={shown} />
        </section>
      )}
    </>
  );
}

function Chip({ stream, active, choose }: { stream: Stream; active: boolean; choose: () => void }) {
  const { status, total } = useStored(stream.state);
  const button = useRef<HTMLButtonElement>(null);
  useEffect(() => {
    if (active) button.current?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [active]);
  return (
    <button
      ref={button}
      type="button"
      role="tab"
      aria-selected={active}
      className="noo-chip"
      data-status={status}
      data-stream={stream.name}
      title={`${stream.name}: ${STATUS_WORDS[status]}, ${total} events`}
      onClick={choose}
    >
      <span className="noo-dot" />
      {stream.name}
      <span className="noo-count">{total}</span>
    </button>
  );
}

function Controls({ engine, stream }: { engine: Engine; stream: Stream }) {
  useStored(stream.state);
  const over = stream.isOver();
  return (
    <button
      type="button"
      className="noo-button noo-small"
      onClick={() => (over ? engine.streams.remove(stream) : stream.stop())}
    >
      {over ? "Remove" : "Stop"}
    </button>
  );
}

function Events({ stream }: { stream: Stream }) {
  const { status, events, total, failure } = useStored(stream.state);
  const box = useRef<HTMLOListElement>(null);
  const follows = useRef(true);
  useLayoutEffect(() => {
    if (follows.current && box.current) box.current.scrollTop = box.current.scrollHeight;
  });
  const rows = merge(events).slice(-ROWS);
  return (
    <ol
      className="noo-events"
      ref={box}
      tabIndex={0}
      onScroll={({ currentTarget: { scrollTop, scrollHeight, clientHeight } }) => {
        follows.current = scrollHeight - scrollTop - clientHeight < 24;
      }}
    >
      {total === 0 && <li className="noo-event noo-quiet">{WAITING[status] ?? "No events."}</li>}
      {rows.map((row) => (
        <li key={row.number} className="noo-event" data-type={row.type}>
          <time>+{(row.at / 1_000).toFixed(2)} s</time>
          <span className="noo-type" data-kind={kindOf(row.type)}>
            {row.type}
            {row.count > 1 && <small> ×{row.count}</small>}
          </span>
          <span className="noo-text">{row.text}</span>
        </li>
      ))}
      {status === "reconnecting" && <li className="noo-event noo-quiet">Connection lost. Resuming after the last event…</li>}
      {failure && <li className="noo-event noo-fault">{failure}</li>}
      {(status === "done" || status === "stopped") && (
        <li className="noo-event noo-quiet">{status === "done" ? "The stream is complete." : "Stopped."}</li>
      )}
    </ol>
  );
}

const WAITING: Partial<Record<string, string>> = {
  connecting: "Connecting…",
  live: "Waiting for events…",
  reconnecting: "Connecting…",
};

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

function kindOf(type: string): string {
  if (/Failed$|^error$/.test(type)) return "bad";
  if (/(Completed|Finished|Exited)$/.test(type)) return "good";
  if (/Reset$/.test(type)) return "odd";
  return "plain";
}
