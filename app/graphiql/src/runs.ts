import type { Client } from "graphql-ws";
import type { GraphQLParams, GraphQLResult } from "./http";
import { Store } from "./observable";
import { cursorOf, resumed } from "./resume";

export type StreamStatus = "connecting" | "live" | "reconnecting" | "done" | "stopped" | "failed";

export interface StreamEvent {
  /** Counts from 1 within its stream. */
  number: number;
  /** Milliseconds since the stream was opened. */
  at: number;
  result: GraphQLResult;
}

export interface StreamState {
  status: StreamStatus;
  events: readonly StreamEvent[];
  /** All events so far, of which only the newest KEPT are in `events`. */
  total: number;
  failure: string | null;
}

/** Events kept per stream; older ones are counted, not shown. */
const KEPT = 1_000;
/** Events in the response pane, which is rewritten on every change. */
const SHOWN = 100;
/** Streams of the past that stay listed. */
const LISTED = 8;

/** Something a tab started whose result the tab shows: it outlives a change of tabs. */
export interface Run {
  readonly tabId: string | null;
  readonly subscribe: (listener: () => void) => () => void;
  view(): unknown;
  isOver(): boolean;
  stop(): void;
}

/** One subscription, which goes on in the background and resumes after a lost connection. */
export class Stream implements Run {
  readonly state = new Store<StreamState>({ status: "connecting", events: [], total: 0, failure: null });
  readonly subscribe = this.state.subscribe;
  private readonly opened = performance.now();
  private cursor: string | null = null;
  private unsubscribe: () => void = () => {};

  constructor(
    readonly id: number,
    readonly name: string,
    readonly tabId: string | null,
    private readonly params: GraphQLParams,
  ) {}

  start(client: Client): void {
    const current = () => (this.cursor === null ? this.params : resumed(this.params, this.cursor));
    // The client serialises this object anew for every connection, which is what resumes.
    const payload = {
      operationName: this.params.operationName,
      get query() {
        return current().query;
      },
      get variables() {
        return current().variables;
      },
    };
    this.unsubscribe = client.subscribe(payload, {
      next: (result) => this.receive(result as GraphQLResult),
      error: (error) => this.end("failed", describe(error)),
      complete: () => this.end("done", null),
    });
  }

  isOver(): boolean {
    return ["done", "stopped", "failed"].includes(this.state.get().status);
  }

  stop(): void {
    this.end("stopped", null);
    this.unsubscribe();
  }

  mark(status: StreamStatus): void {
    const state = this.state.get();
    if (!this.isOver() && state.status !== status) this.state.set({ ...state, status });
  }

  view(): unknown {
    const { status, events, total, failure } = this.state.get();
    const shown = events.slice(-SHOWN);
    const hidden = total - shown.length;
    const summary = `${STATUS_WORDS[status]}, ${total} ${total === 1 ? "event" : "events"}, newest last`;
    return {
      stream: hidden ? `${summary} (the first ${hidden} not shown)` : summary,
      ...(failure ? { failure } : {}),
      events: shown.map(({ result }) => (result.errors?.length ? result : result.data)),
    };
  }

  private receive(result: GraphQLResult): void {
    if (this.isOver()) return;
    this.cursor = cursorOf(result) ?? this.cursor;
    const state = this.state.get();
    const event = { number: state.total + 1, at: performance.now() - this.opened, result };
    const events = [...state.events.slice(-(KEPT - 1)), event];
    this.state.set({ ...state, status: "live", events, total: state.total + 1 });
  }

  private end(status: StreamStatus, failure: string | null): void {
    if (this.isOver()) return;
    this.state.set({ ...this.state.get(), status, failure });
  }
}

export const STATUS_WORDS: Record<StreamStatus, string> = {
  connecting: "connecting",
  live: "live",
  reconnecting: "reconnecting",
  done: "complete",
  stopped: "stopped",
  failed: "failed",
};

function describe(error: unknown): string {
  if (Array.isArray(error)) return error.map((item: { message?: string }) => item.message ?? String(item)).join(" ");
  if (error instanceof Error) return error.message;
  if (typeof CloseEvent !== "undefined" && error instanceof CloseEvent) {
    return `The connection was closed: ${error.reason || "no reason given"} (${error.code}).`;
  }
  return "The connection failed.";
}

/** The streams of this page, oldest first. */
export class Streams extends Store<readonly Stream[]> {
  private next = 1;

  constructor(private readonly client: Client) {
    super([]);
    client.on("connected", () => this.mark("live"));
    client.on("closed", () => this.mark("reconnecting"));
  }

  open(name: string, tabId: string | null, params: GraphQLParams): Stream {
    const stream = new Stream(this.next, name, tabId, params);
    this.next += 1;
    const surplus = this.get().length + 1 - LISTED;
    let dropped = 0;
    const kept = this.get().filter((one) => !(dropped < surplus && one.isOver() && ++dropped));
    this.set([...kept, stream]);
    stream.start(this.client);
    return stream;
  }

  remove(stream: Stream): void {
    stream.stop();
    this.set(this.get().filter((one) => one !== stream));
  }

  stopAll(): void {
    for (const stream of this.get()) stream.stop();
  }

  private mark(status: StreamStatus): void {
    for (const stream of this.get()) stream.mark(status);
  }
}

/** An operation over HTTP, or several in order, whose view may grow until it is over. */
export class Task implements Run {
  private readonly shown = new Store<{ view: unknown; over: boolean }>({ view: undefined, over: false });
  readonly subscribe = this.shown.subscribe;
  private readonly controller = new AbortController();

  constructor(readonly tabId: string | null) {}

  start(work: (signal: AbortSignal, show: (view: unknown) => void) => Promise<unknown>): this {
    const show = (view: unknown) => {
      if (!this.isOver()) this.shown.set({ view, over: false });
    };
    work(this.controller.signal, show).then(
      (view) => this.finish(view),
      (error: unknown) => {
        const message = error instanceof Error ? error.message : String(error);
        this.finish({ errors: [{ message }] });
      },
    );
    return this;
  }

  view(): unknown {
    return this.shown.get().view;
  }

  isOver(): boolean {
    return this.shown.get().over;
  }

  stop(): void {
    this.controller.abort(new Error("Stopped."));
  }

  private finish(view: unknown): void {
    if (!this.isOver()) this.shown.set({ view, over: true });
  }
}
