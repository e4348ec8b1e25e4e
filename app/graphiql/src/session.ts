import { type GraphQLResult, type HttpAnswer, isUnauthenticated, post } from "./http";
import { Store } from "./observable";

export interface Account {
  id: string;
  username: string;
}

export interface Signed {
  token: string;
  refreshToken: string;
  /** When `token` stops being accepted, ISO 8601. */
  expiresAt: string;
  account: Account | null;
}

export interface SessionState {
  signed: Signed | null;
  /** What a person should know, for example that the session ended. */
  notice: string | null;
}

export interface Fault {
  code?: string;
  message: string;
  path?: readonly string[];
}

interface SessionPayload {
  session?: Omit<Signed, "account"> | null;
  user?: Account | null;
  errors?: Fault[];
}

export const SESSION_KEY = "noosphere:session";
const LEASE_KEY = "noosphere:refreshing";

/** Refresh this long before the token expires, in ms; a request within it waits for the refresh. */
const MARGIN_MS = 30_000;
/** A failed refresh (no network, server restarting) is tried again after this, in ms. */
const RETRY_MS = 5_000;
/** How long one tab's writes to localStorage may take to reach another, in ms; generous. */
const SETTLE_MS = 150;
/** The longest delay a browser's timer can hold, in ms. */
const MAX_TIMER_MS = 2 ** 31 - 1;

const SESSION_FIELDS = "session { token refreshToken expiresAt } errors { code message path }";
const SIGN_IN = `mutation SignIn($login: String!, $password: String!) {
  sessionCreate(input: {login: $login, password: $password}) { user { id username } ${SESSION_FIELDS} }
}`;
const REGISTER = `mutation Register($username: String!, $email: String!, $password: String!) {
  userRegister(input: {username: $username, email: $email, password: $password}) {
    user { id username } ${SESSION_FIELDS}
  }
}`;
const REFRESH = `mutation Refresh($refreshToken: String!) {
  sessionRefresh(refreshToken: $refreshToken) { ${SESSION_FIELDS} }
}`;
const REVOKE = "mutation SignOut { sessionRevoke { errors { code message path } } }";
const VIEWER = "query Viewer { viewer { id username } }";

export class SignInError extends Error {
  constructor(readonly faults: Fault[]) {
    super(faults.map((fault) => fault.message).join(" "));
  }
}

function read(storage: Storage): Signed | null {
  try {
    const value = JSON.parse(storage.getItem(SESSION_KEY) ?? "null") as Signed | null;
    return value && typeof value.token === "string" && typeof value.refreshToken === "string" ? value : null;
  } catch {
    return null;
  }
}

/**
 * Who is signed in, shared by all tabs of this browser through localStorage.
 *
 * A refresh token may be used once only: the server takes a second use for theft and ends the
 * session. So one browser tab refreshes at a time and the others adopt what it stored.
 */
export class Session {
  readonly state: Store<SessionState>;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private refreshing: Promise<void> | null = null;

  constructor(
    private readonly endpoint: string,
    private readonly storage: Storage = window.localStorage,
  ) {
    this.state = new Store<SessionState>({ signed: read(storage), notice: null });
  }

  /** Watch other tabs, keep the token fresh, and check that a stored session still holds. */
  start(): void {
    window.addEventListener("storage", (event) => {
      if (event.key === SESSION_KEY || event.key === null) this.adoptStored();
    });
    // A laptop that slept through its timer refreshes as soon as somebody looks at the page.
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible") this.schedule();
    });
    if (this.signed) void this.check();
    this.schedule();
  }

  get signed(): Signed | null {
    return this.state.get().signed;
  }

  /** The token to send now, refreshed first if it is about to expire; null when signed out. */
  async token(): Promise<string | null> {
    const signed = this.signed;
    if (signed && remaining(signed) < Math.min(MARGIN_MS, 5_000)) await this.refresh();
    return this.signed?.token ?? null;
  }

  async signIn(login: string, password: string): Promise<void> {
    await this.enter(SIGN_IN, { login, password }, "sessionCreate");
  }

  async register(username: string, email: string, password: string): Promise<void> {
    await this.enter(REGISTER, { username, email, password }, "userRegister");
  }

  /** Take over a session that an operation typed by the user created. */
  adopt(result: GraphQLResult): boolean {
    for (const value of Object.values(result.data ?? {})) {
      const payload = value as SessionPayload | null;
      const { token, refreshToken, expiresAt } = payload?.session ?? {};
      if (!token || !refreshToken || !expiresAt) continue;
      const { id, username } = payload?.user ?? {};
      const account = id && username ? { id, username } : null;
      this.store({ token, refreshToken, expiresAt, account }, null);
      if (!account) void this.check();
      return true;
    }
    return false;
  }

  /** Forget the session here even when the server cannot be told. */
  async signOut(): Promise<void> {
    const token = this.signed?.token ?? null;
    this.store(null, null);
    if (!token) return;
    try {
      await post(this.endpoint, { query: REVOKE, operationName: "SignOut" }, { token });
    } catch {
      this.store(null, "Signed out here. The server could not be told, so the session ends by itself.");
    }
  }

  /**
   * Exchange the refresh token for a new pair; signs out when the server refuses it. Does nothing
   * when `refused`, the token found wanting, has been replaced already.
   */
  async refresh(refused: string | null = this.signed?.token ?? null): Promise<void> {
    this.refreshing ??= this.exclusively(() => this.exchange(refused)).finally(() => {
      this.refreshing = null;
    });
    await this.refreshing;
  }

  private async enter(query: string, variables: Record<string, unknown>, field: string): Promise<void> {
    const { result } = await post(this.endpoint, { query, variables });
    if (result.errors?.length) {
      throw new SignInError(result.errors.map(({ message }) => ({ message })));
    }
    const payload = result.data?.[field] as SessionPayload | null | undefined;
    if (payload?.errors?.length) throw new SignInError(payload.errors);
    if (!this.adopt(result)) throw new SignInError([{ message: "The server opened no session." }]);
  }

  private async exchange(refused: string | null): Promise<void> {
    // What another tab has just stored may take a moment to arrive, and using its old refresh
    // token again would end the session.
    await pause(SETTLE_MS);
    if (read(this.storage)?.token !== this.signed?.token) this.adoptStored();
    const current = this.signed;
    if (!current || current.token !== refused) return;
    const variables = { refreshToken: current.refreshToken };
    let answer: HttpAnswer;
    try {
      answer = await post(this.endpoint, { query: REFRESH, variables });
    } catch {
      this.schedule(RETRY_MS);
      return;
    }
    const payload = answer.result.data?.sessionRefresh as SessionPayload | null | undefined;
    if (payload?.session) {
      // Somebody who signed out while the answer was under way stays signed out.
      if (this.signed?.token === current.token) {
        this.store({ ...payload.session, account: this.signed.account }, null);
      }
    } else if (payload?.errors?.length || isUnauthenticated(answer)) {
      this.end(current.token);
    } else {
      this.schedule(RETRY_MS);
    }
  }

  /** Ask who the token belongs to; an unknown token is refreshed once before it is given up. */
  private async check(): Promise<void> {
    try {
      for (const isLast of [false, true]) {
        const token = await this.token();
        if (!token) return;
        const answer = await post(this.endpoint, { query: VIEWER }, { token });
        const viewer = answer.result.data?.viewer as Account | null | undefined;
        if (viewer) {
          this.name(token, { id: viewer.id, username: viewer.username });
          return;
        }
        if (!isUnauthenticated(answer) && answer.result.data?.viewer !== null) return;
        if (isLast) this.end(token);
        else await this.refresh(token);
      }
    } catch {
      // The server is away; the stored session is kept and the next request tells more.
    }
  }

  /** Note whose token this is, unless it was replaced meanwhile, by this page or by another tab. */
  private name(token: string, account: Account): void {
    const signed = this.signed;
    if (signed?.token !== token || signed.account?.id === account.id) return;
    if (read(this.storage)?.token === token) this.store({ ...signed, account }, null);
  }

  /** Forget a session whose token is refused, unless the token was replaced meanwhile. */
  private end(token: string): void {
    if (read(this.storage)?.token === token) this.store(null, "Your session ended. Sign in again.");
    else this.adoptStored();
  }

  private store(signed: Signed | null, notice: string | null): void {
    if (signed) this.storage.setItem(SESSION_KEY, JSON.stringify(signed));
    else this.storage.removeItem(SESSION_KEY);
    this.state.set({ signed, notice });
    this.schedule();
  }

  private adoptStored(): void {
    this.state.set({ signed: read(this.storage), notice: null });
    this.schedule();
  }

  private schedule(after?: number): void {
    clearTimeout(this.timer);
    const signed = this.signed;
    if (!signed) return;
    const delay = after ?? remaining(signed) - margin(signed);
    this.timer = setTimeout(
      () => void this.refresh(signed.token),
      Math.min(Math.max(delay, 0), MAX_TIMER_MS),
    );
  }

  /** Run `work` in one tab at a time. Web Locks need a secure context; a lease stands in for them. */
  private async exclusively(work: () => Promise<void>): Promise<void> {
    if (navigator.locks) {
      await navigator.locks.request(LEASE_KEY, work);
      return;
    }
    const mine = Math.random().toString(36).slice(2);
    for (;;) {
      const [owner, until] = (this.storage.getItem(LEASE_KEY) ?? "").split(" ");
      if (!owner || Number(until) < Date.now()) {
        this.storage.setItem(LEASE_KEY, `${mine} ${Date.now() + 10_000}`);
        await pause(50);
        if (this.storage.getItem(LEASE_KEY)?.startsWith(mine)) break;
      }
      await pause(200);
    }
    try {
      await work();
    } finally {
      this.storage.removeItem(LEASE_KEY);
    }
  }
}

/** How long the token still holds, in ms; infinite when its time cannot be read. */
export function remaining(signed: Signed): number {
  const until = Date.parse(signed.expiresAt);
  return Number.isNaN(until) ? Infinity : until - Date.now();
}

/** Refresh earlier with long tokens, yet never before a short token has served half its life. */
function margin(signed: Signed): number {
  return Math.min(MARGIN_MS, remaining(signed) / 2);
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms);
  });
}
