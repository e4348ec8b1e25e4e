import type { Fetcher, FetcherParams } from "@graphiql/toolkit";
import { type DocumentNode, type GraphQLSchema, GraphQLError, Kind, OperationTypeNode, parse } from "graphql";
import { type Client, createClient } from "graphql-ws";
import { type GraphQLParams, type GraphQLResult, isUnauthenticated, post } from "./http";
import { type Filled, fill, idsIn, operationOf, RememberedIds } from "./ids";
import { Store } from "./observable";
import { type Run, Streams, Task } from "./runs";
import { Session } from "./session";

/** The response pane is rewritten at most this often, in ms. */
const PAINT_MS = 80;
/** In a sequence, the longest wait for an assistant's answer, in ms, and how often to look. */
const ANSWER_MS = 60_000;
const LOOK_MS = 300;
const MAX_RETRY_MS = 15_000;
/** The server closes a socket with this code when its token is refused or has expired. */
const FORBIDDEN = 4403;
/** Refusals in a row, each after a refresh, until a stream is given up. */
const MAX_REFUSALS = 3;

const ANSWER = "query Answer($id: ID!) { node(id: $id) { ... on Message { status content } } }";

type Headers = Record<string, string>;
interface Sink {
  next(value: unknown): void;
  complete(): void;
}

/** Everything behind the page: the session, the transports, the streams and the remembered ids. */
export class Engine {
  readonly session: Session;
  readonly ids = new RememberedIds();
  readonly streams: Streams;
  /** The variables filled in by the last run. */
  readonly filled = new Store<readonly Filled[]>([]);
  schema: GraphQLSchema | null = null;
  activeTabId: string | null = null;
  private readonly client: Client;
  private readonly runs = new Map<string, Run>();
  private readonly delivered = new WeakMap<Run, string>();
  private attaching: Run | null = null;
  private sequence = false;
  private refusals = 0;

  constructor(private readonly endpoint: string) {
    this.session = new Session(endpoint);
    const url = new URL(endpoint, window.location.href);
    url.protocol = url.protocol.replace("http", "ws");
    this.client = createClient({
      url: url.href,
      lazyCloseTimeout: 3_000,
      keepAlive: 20_000,
      connectionParams: async () => {
        // A clock that differs from the server's hides that a token has expired.
        if (this.refusals > 0) await this.session.refresh();
        const token = await this.session.token();
        return token ? { Authorization: `Bearer ${token}` } : {};
      },
      retryAttempts: 1_000,
      shouldRetry: () => this.refusals <= MAX_REFUSALS,
      retryWait: async (retries) => {
        const base = Math.min(MAX_RETRY_MS, 250 * 2 ** Math.min(retries, 8));
        await pause(base * (0.5 + Math.random() / 2));
      },
    });
    this.client.on("connected", () => {
      this.refusals = 0;
    });
    this.client.on("closed", (event) => {
      if ((event as CloseEvent).code === FORBIDDEN) this.refusals += 1;
    });
    this.streams = new Streams(this.client);
    this.session.start();
    this.watchAccount();
  }

  /** The next run executes all operations of the document in order. */
  runSequence(run: () => void): void {
    this.sequence = true;
    run();
  }

  /** Show again, through `run`, what a tab's operation brought while another tab was in front. */
  reattach(tabId: string, run: () => void): void {
    const one = this.runs.get(tabId);
    if (!one || (one.isOver() && this.delivered.get(one) === signature(one.view()))) return;
    this.attaching = one;
    run();
  }

  /** Stop what closed tabs had started. */
  retain(tabIds: readonly string[]): void {
    for (const [tabId, run] of this.runs) {
      if (tabIds.includes(tabId)) continue;
      this.runs.delete(tabId);
      run.stop();
    }
  }

  readonly fetcher: Fetcher = (params, options) => {
    const headers = (options?.headers ?? {}) as Headers;
    if (params.operationName === "IntrospectionQuery") {
      return this.send(params, headers, null) as never;
    }
    const attached = this.attaching;
    this.attaching = null;
    if (attached) return this.observe(attached) as never;
    const run = this.begin(params, headers);
    if (this.activeTabId) this.runs.set(this.activeTabId, run);
    return this.observe(run) as never;
  };

  private begin(given: FetcherParams, headers: Headers): Run {
    const sequence = this.sequence;
    this.sequence = false;
    this.filled.set([]);
    const document = parsed(given.query);
    // GraphiQL learns of a changed text a moment later, so the name may be that of the text before.
    const named = document && operationOf(document, given.operationName);
    const operation = document && (named ?? operationOf(document));
    const params = { ...given, operationName: operation?.name?.value };
    if (!document || !operation) {
      return new Task(this.activeTabId).start((signal) => this.send(params, headers, signal));
    }
    if (sequence) return this.beginSequence(document, params, headers);
    if (operation.operation === OperationTypeNode.SUBSCRIPTION) {
      const ready = this.prepare(document, params);
      if ("problem" in ready) return failed(this.activeTabId, ready.problem);
      return this.streams.open(operation.name?.value ?? "subscription", this.activeTabId, ready.params);
    }
    return new Task(this.activeTabId).start((signal) => this.execute(document, params, headers, signal));
  }

  /** Operations one after the other; subscriptions stay open beside those that follow. */
  private beginSequence(document: DocumentNode, params: FetcherParams, headers: Headers): Run {
    const tabId = this.activeTabId;
    return new Task(tabId).start(async (signal, show) => {
      const view: Record<string, unknown> = {};
      for (const node of document.definitions) {
        if (node.kind !== Kind.OPERATION_DEFINITION) continue;
        const name = node.name?.value ?? node.operation;
        const one = { ...params, operationName: node.name?.value };
        if (node.operation === OperationTypeNode.SUBSCRIPTION) {
          const ready = this.prepare(document, one);
          if ("problem" in ready) return { ...view, [name]: { errors: [{ message: ready.problem }] } };
          this.streams.open(name, null, ready.params);
          view[name] = "streaming: see Live events below";
        } else {
          const result = await this.execute(document, one, headers, signal);
          view[name] = result.errors?.length ? result : result.data;
          show({ ...view });
          if (result.errors?.length || hasUserErrors(result)) {
            return { ...view, stopped: `${name} was refused, so the operations after it were not run.` };
          }
          await this.answered(result, signal);
        }
        show({ ...view });
      }
      return view;
    });
  }

  /** Wait until an assistant's reply that was just started is complete. */
  private async answered(result: GraphQLResult, signal: AbortSignal): Promise<void> {
    const replies = Object.values(result.data ?? {}).map(
      (value) => (value as { reply?: { id?: string } } | null)?.reply,
    );
    const deadline = performance.now() + ANSWER_MS;
    for (const reply of replies) {
      while (reply?.id && performance.now() < deadline) {
        signal.throwIfAborted();
        const seen = await this.send({ query: ANSWER, variables: { id: reply.id } }, {}, signal);
        const status = (seen.data?.node as { status?: string } | null)?.status;
        if (status !== "PENDING" && status !== "STREAMING") break;
        await pause(LOOK_MS);
      }
    }
  }

  /** Fill in missing ids, or say which operation has to run first. */
  private prepare(
    document: DocumentNode,
    params: FetcherParams,
  ): { params: GraphQLParams } | { problem: string } {
    const operation = operationOf(document, params.operationName);
    const given = (params.variables ?? {}) as Record<string, unknown>;
    if (!operation || !this.schema) return { params: { ...params, variables: given } };
    // The editor holds the variables of all operations of a tab; send those this one declares.
    const declared = new Set(operation.variableDefinitions?.map((node) => node.variable.name.value));
    const own = Object.fromEntries(Object.entries(given).filter(([name]) => declared.has(name)));
    const { variables, filled, missing } = fill(this.schema, operation, own, this.ids.get());
    if (missing.length) {
      const names = missing.map(({ name, type }) => `$${name} (the id of a ${type})`).join(", ");
      return {
        problem: `Not sent: ${names} is missing. Create one first, and its id is filled in by itself, or give it under Variables.`,
      };
    }
    if (filled.length) {
      const names = new Set(filled.map(({ name }) => name));
      this.filled.set([...this.filled.get().filter(({ name }) => !names.has(name)), ...filled]);
    }
    return { params: { ...params, variables } };
  }

  private async execute(
    document: DocumentNode,
    params: FetcherParams,
    headers: Headers,
    signal: AbortSignal,
  ): Promise<GraphQLResult> {
    const ready = this.prepare(document, params);
    if ("problem" in ready) return { errors: [{ message: ready.problem }] };
    const result = await this.send(ready.params, headers, signal);
    const operation = operationOf(document, params.operationName);
    if (operation?.operation === OperationTypeNode.MUTATION && result.data) {
      this.session.adopt(result);
      if (this.schema) this.ids.remember(idsIn(this.schema, document, operation, result.data));
    }
    return result;
  }

  /** Send over HTTP; a token refused as a whole is refreshed and the request sent once more. */
  private async send(params: GraphQLParams, headers: Headers, signal: AbortSignal | null): Promise<GraphQLResult> {
    const token = await this.session.token();
    let answer = await post(this.endpoint, params, { token, headers, signal });
    if (token && isUnauthenticated(answer)) {
      await this.session.refresh(token);
      const fresh = this.session.signed?.token ?? null;
      if (fresh !== token) answer = await post(this.endpoint, params, { token: fresh, headers, signal });
    }
    return answer.result;
  }

  /** What GraphiQL shows of a run: painted now and then, and never into another tab. */
  private observe(run: Run) {
    return {
      subscribe: (sink: Sink) => {
        let timer: ReturnType<typeof setTimeout> | undefined;
        let closed = false;
        const paint = () => {
          clearTimeout(timer);
          timer = undefined;
          if (closed || this.activeTabId !== run.tabId) return;
          const view = run.view();
          if (view !== undefined) sink.next(view);
          this.delivered.set(run, signature(view));
          if (!run.isOver()) return;
          close();
          sink.complete();
        };
        const changed = () => {
          if (run.isOver()) paint();
          else timer ??= setTimeout(paint, PAINT_MS);
        };
        const unlisten = run.subscribe(changed);
        const close = () => {
          closed = true;
          clearTimeout(timer);
          unlisten();
        };
        // GraphiQL keeps the subscription only after this returns, so nothing may complete before.
        timer = setTimeout(paint, 0);
        return {
          unsubscribe: () => {
            if (closed) return;
            close();
            // GraphiQL stops a tab's operation both for its Stop button and for a change of tabs;
            // only then another tab is in front right afterwards.
            queueMicrotask(() => {
              if (this.activeTabId === run.tabId) run.stop();
            });
          },
        };
      },
    };
  }

  /** Another account sees other things: its streams are opened anew and its ids forgotten. */
  private watchAccount(): void {
    let before = this.session.signed;
    this.session.state.subscribe(() => {
      const now = this.session.signed;
      if (!now) this.streams.stopAll();
      if (before?.account && before.account.id !== now?.account?.id) this.ids.forget();
      if (!before !== !now) this.client.terminate();
      before = now;
    });
  }
}

/** Equal for equal views, without holding on to a long one. */
function signature(view: unknown): string {
  return JSON.stringify(view) ?? "";
}

function parsed(query: string): DocumentNode | undefined {
  try {
    return parse(query);
  } catch (error) {
    if (error instanceof GraphQLError) return undefined;
    throw error;
  }
}

function failed(tabId: string | null, problem: string): Run {
  return new Task(tabId).start(async () => ({ errors: [{ message: problem }] }));
}

/** Whether a mutation's payload says that it did nothing: `errors` beside its nullable fields. */
function hasUserErrors(result: GraphQLResult): boolean {
  return Object.values(result.data ?? {}).some((value) => {
    const errors = (value as { errors?: unknown } | null)?.errors;
    return Array.isArray(errors) && errors.length > 0;
  });
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms);
  });
}
