export interface GraphQLParams {
  query: string;
  operationName?: string | null;
  variables?: Record<string, unknown> | null;
}

export interface GraphQLFault {
  message: string;
  extensions?: { code?: string; [key: string]: unknown };
  [key: string]: unknown;
}

export interface GraphQLResult {
  data?: Record<string, unknown> | null;
  errors?: readonly GraphQLFault[];
  extensions?: Record<string, unknown>;
}

export interface HttpAnswer {
  status: number;
  result: GraphQLResult;
}

export interface PostOptions {
  token?: string | null;
  headers?: Record<string, string>;
  signal?: AbortSignal | null;
}

/** Longest wait for an answer over HTTP, in ms. */
const TIMEOUT_MS = 60_000;

const ACCEPT = "application/graphql-response+json, application/json;q=0.9";

/** Send one operation by POST. Headers typed by the user win over the session's token. */
export async function post(
  endpoint: string,
  params: GraphQLParams,
  { token = null, headers = {}, signal = null }: PostOptions = {},
): Promise<HttpAnswer> {
  const all = new Headers({ accept: ACCEPT, "content-type": "application/json" });
  if (token) all.set("authorization", `Bearer ${token}`);
  for (const [name, value] of Object.entries(headers)) all.set(name, String(value));
  const timeout = AbortSignal.timeout(TIMEOUT_MS);
  const response = await fetch(endpoint, {
    method: "POST",
    headers: all,
    body: JSON.stringify(params),
    signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
    credentials: "same-origin",
  });
  const text = await response.text();
  try {
    return { status: response.status, result: JSON.parse(text) as GraphQLResult };
  } catch {
    const start = text.trim().slice(0, 200);
    throw new Error(
      `The server answered ${response.status} ${response.statusText} without JSON${start ? `: ${start}` : "."}`,
    );
  }
}

/** Whether the server refused the whole request because the token is unknown or expired. */
export function isUnauthenticated({ status, result }: HttpAnswer): boolean {
  if (result.data) return false;
  if (status === 401) return true;
  return (result.errors ?? []).some((error) => error.extensions?.code === "UNAUTHENTICATED");
}
