import { useEffect, useLayoutEffect, useRef, useState } from "react";
import { useStored } from "./account";
import type { Engine } from "./engine";
import { kindOf, merge } from "./events";
import { STATUS_WORDS, type Stream } from "./runs";

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
  }, [active, total, status]);
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
          <span className="noo-type" data-kind={kindOf(row)}>
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
