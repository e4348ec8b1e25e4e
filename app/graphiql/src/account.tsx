import { type FormEvent, useEffect, useState, useSyncExternalStore } from "react";
import type { Engine } from "./engine";
import { type Fault, remaining, SignInError, type Signed } from "./session";

export function useStored<T>(store: { get: () => T; subscribe: (listener: () => void) => () => void }): T {
  return useSyncExternalStore(store.subscribe, store.get);
}

export function AccountIcon() {
  return (
    <svg viewBox="0 0 20 20" fill="none" stroke="currentColor" strokeWidth="1.6" aria-hidden="true">
      <circle cx="10" cy="6.5" r="3.6" />
      <path d="M2.8 18c.6-4 3.4-6 7.2-6s6.6 2 7.2 6" strokeLinecap="round" />
    </svg>
  );
}

/** The panel of the sign-in helper and of what the page remembers. */
export function AccountPanel({ engine, restore }: { engine: Engine; restore: () => void }) {
  const { signed, notice } = useStored(engine.session.state);
  return (
    <section className="noo-panel" aria-label="Account">
      <h1 className="noo-title">Account</h1>
      {notice && <p className="noo-notice" role="status">{notice}</p>}
      {signed ? <SignedIn engine={engine} signed={signed} /> : <Entrance engine={engine} />}
      <Remembered engine={engine} />
      <h2 className="noo-heading">Examples</h2>
      <p className="noo-hint">Seven tabs walk through the first minute: register, talk, remember, plan, run code.</p>
      <button type="button" className="noo-button" onClick={restore}>Open the examples again</button>
    </section>
  );
}

function SignedIn({ engine, signed }: { engine: Engine; signed: Signed }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    const token = await engine.session.token();
    if (!token) return;
    await navigator.clipboard.writeText(token);
    setCopied(true);
    setTimeout(() => setCopied(false), 2_000);
  };
  return (
    <div className="noo-signed">
      <p>
        Signed in as <strong data-testid="who">{signed.account?.username ?? "…"}</strong>
      </p>
      <p className="noo-hint"><Expiry signed={signed} /></p>
      <div className="noo-row">
        <button type="button" className="noo-button" onClick={() => void engine.session.signOut()}>Sign out</button>
        {navigator.clipboard && (
          <button type="button" className="noo-button" onClick={() => void copy()}>
            {copied ? "Copied" : "Copy token"}
          </button>
        )}
      </div>
    </div>
  );
}

function Expiry({ signed }: { signed: Signed }) {
  const [, tick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => tick((count) => count + 1), 10_000);
    return () => clearInterval(timer);
  }, []);
  const left = remaining(signed);
  if (!Number.isFinite(left)) return <>The token is renewed when the server asks for it.</>;
  const minutes = Math.round(left / 60_000);
  return <>The token is renewed by itself {minutes > 1 ? `in about ${minutes} minutes` : "within a minute"}.</>;
}

function Entrance({ engine }: { engine: Engine }) {
  const [registering, setRegistering] = useState(false);
  const [faults, setFaults] = useState<Fault[]>([]);
  const [busy, setBusy] = useState(false);

  const submit = async (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault();
    const form = new FormData(event.currentTarget);
    const text = (name: string) => String(form.get(name) ?? "");
    setBusy(true);
    setFaults([]);
    try {
      if (registering) await engine.session.register(text("username"), text("email"), text("password"));
      else await engine.session.signIn(text("login"), text("password"));
    } catch (error) {
      if (error instanceof SignInError) setFaults(error.faults);
      else setFaults([{ message: error instanceof Error ? error.message : String(error) }]);
    } finally {
      setBusy(false);
    }
  };

  const choose = (value: boolean) => {
    setRegistering(value);
    setFaults([]);
  };

  return (
    <>
      <div className="noo-switch" role="tablist" aria-label="Sign in or register">
        <button type="button" role="tab" aria-selected={!registering} onClick={() => choose(false)}>Sign in</button>
        <button type="button" role="tab" aria-selected={registering} onClick={() => choose(true)}>Register</button>
      </div>
      <form className="noo-form" onSubmit={(event) => void submit(event)} key={String(registering)}>
        {registering ? (
          <>
            <Input label="User name" name="username" autoComplete="username" />
            <Input label="E-mail" name="email" type="email" autoComplete="email" />
            <Input label="Password" name="password" type="password" autoComplete="new-password" />
          </>
        ) : (
          <>
            <Input label="User name or e-mail" name="login" autoComplete="username" />
            <Input label="Password" name="password" type="password" autoComplete="current-password" />
          </>
        )}
        {faults.map((fault) => (
          <p key={fault.message} className="noo-fault" role="alert">{fault.message}</p>
        ))}
        <button type="submit" className="noo-button noo-primary" disabled={busy}>
          {registering ? "Register" : "Sign in"}
        </button>
      </form>
    </>
  );
}

interface InputProps {
  label: string;
  name: string;
  type?: string;
  autoComplete: string;
}

function Input({ label, name, type = "text", autoComplete }: InputProps) {
  return (
    <label className="noo-field">
      <span>{label}</span>
      <input name={name} type={type} autoComplete={autoComplete} autoCapitalize="none" spellCheck={false} required />
    </label>
  );
}

function Remembered({ engine }: { engine: Engine }) {
  const ids = useStored(engine.ids);
  const entries = Object.entries(ids).sort(([left], [right]) => left.localeCompare(right));
  return (
    <>
      <h2 className="noo-heading">Last ids</h2>
      {entries.length === 0 ? (
        <p className="noo-hint">
          What mutations create is remembered here. A required id variable without a value, such as
          {" "}<code>$conversationId</code>, is filled in with the last one.
        </p>
      ) : (
        <>
          <dl className="noo-ids">
            {entries.map(([type, id]) => (
              <div key={type}>
                <dt>{type}</dt>
                <dd title={id}>{id}</dd>
              </div>
            ))}
          </dl>
          <p className="noo-hint">Fill id variables that have no value. Write a value under Variables to use another.</p>
          <button type="button" className="noo-button" onClick={() => engine.ids.forget()}>Forget them</button>
        </>
      )}
    </>
  );
}
