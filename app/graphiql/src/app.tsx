import { HISTORY_PLUGIN } from "@graphiql/plugin-history";
import { type GraphiQLPlugin, ToolbarButton, useGraphiQL, useGraphiQLActions } from "@graphiql/react";
import { GraphiQL } from "graphiql";
import { Kind, parse } from "graphql";
import { useEffect, useLayoutEffect, useRef } from "react";
import { AccountIcon, AccountPanel, useStored } from "./account";
import { Engine } from "./engine";
import { exampleAccount, examples } from "./examples";
import { Live } from "./live";
import { RedactingStorage } from "./redact";

const PANEL_WIDTH = "graphiql:docExplorerFlex";

export interface Config {
  endpoint: string;
  title: string;
}

export function createApp({ endpoint, title }: Config) {
  const engine = new Engine(endpoint);
  const account = exampleAccount();
  const storage = new RedactingStorage([account.password]);
  const tabs = examples(account);
  // A third of the window, GraphiQL's own start, is more than a panel needs.
  if (storage.getItem(PANEL_WIDTH) === null) storage.setItem(PANEL_WIDTH, "0.24");
  const ACCOUNT: GraphiQLPlugin = {
    title: "Account",
    icon: AccountIcon,
    content: () => <AccountPanel engine={engine} restore={useRestore(tabs)} />,
  };
  const plugins = [ACCOUNT, HISTORY_PLUGIN];

  return function App() {
    return (
      <GraphiQL
        fetcher={engine.fetcher}
        storage={storage}
        defaultTabs={tabs}
        plugins={plugins}
        visiblePlugin={engine.session.signed || isNarrow() ? undefined : ACCOUNT}
        defaultEditorToolsVisibility="variables"
        shouldPersistHeaders={false}
        showPersistHeadersSettings={false}
        schemaDescription
        onSchemaChange={(schema) => {
          engine.schema = schema;
        }}
        onTabChange={({ tabs: all, activeTabIndex }) => {
          engine.activeTabId = all[activeTabIndex]?.id ?? null;
        }}
      >
        <GraphiQL.Logo>
          <Who engine={engine} title={title} panel={ACCOUNT} />
        </GraphiQL.Logo>
        <GraphiQL.Toolbar>
          {({ prettify, merge, copy }) => (
            <>
              <RunAll engine={engine} />
              {prettify}
              {merge}
              {copy}
            </>
          )}
        </GraphiQL.Toolbar>
        <GraphiQL.Footer>
          <Bridge engine={engine} />
          <Live engine={engine} />
        </GraphiQL.Footer>
      </GraphiQL>
    );
  };
}

/** On a small screen a panel covers the editors, so none is open at first. */
function isNarrow(): boolean {
  return window.matchMedia("(max-width: 760px)").matches;
}

/** Open the examples in new tabs, and turn to the first of them. */
function useRestore(tabs: ReturnType<typeof examples>): () => void {
  const { addTab, changeTab, setOperationFacts, updateActiveTabValues } = useGraphiQLActions();
  const count = useGraphiQL((state) => state.tabs.length);
  const editors = useGraphiQL(({ queryEditor, variableEditor }) => ({ queryEditor, variableEditor }));
  return () => {
    for (const { query, variables = "" } of tabs) {
      addTab();
      editors.queryEditor?.setValue(query);
      editors.variableEditor?.setValue(variables);
      // The next addTab keeps this one under the name of the operation it believes to be here.
      const documentAST = parse(query);
      const operations = documentAST.definitions.filter((node) => node.kind === Kind.OPERATION_DEFINITION);
      const operationName = operations[0]?.name?.value;
      setOperationFacts({ documentAST, operationName, operations });
      updateActiveTabValues({ query, variables, operationName: operationName ?? null });
    }
    changeTab(count);
  };
}

/** Who is signed in, at the top right; opens the panel. */
function Who({ engine, title, panel }: { engine: Engine; title: string; panel: GraphiQLPlugin }) {
  const { signed } = useStored(engine.session.state);
  const { setVisiblePlugin } = useGraphiQLActions();
  return (
    <button type="button" className="noo-who" onClick={() => setVisiblePlugin(panel)}>
      <strong>{title}</strong>
      <span data-signed={Boolean(signed)}>{signed ? (signed.account?.username ?? "signed in") : "not signed in"}</span>
    </button>
  );
}

function RunAll({ engine }: { engine: Engine }) {
  const { run } = useGraphiQLActions();
  const busy = useGraphiQL((state) => state.isFetching || Boolean(state.subscription));
  const count = useGraphiQL((state) => state.operations?.length ?? 0);
  return (
    <ToolbarButton
      label="Run all operations of this tab, in order"
      className="noo-run-all"
      disabled={busy || count < 2}
      onClick={() => engine.runSequence(() => void run())}
    >
      <svg className="graphiql-toolbar-icon" viewBox="0 0 16 16" fill="currentColor" aria-hidden="true">
        <path d="M2 2.5v11l6-5.5zM8.5 2.5v11l6-5.5z" />
      </svg>
    </ToolbarButton>
  );
}

/**
 * Keeps what the engine knows of the tabs in step with GraphiQL, which stops a tab's operation
 * whenever another comes to the front: the engine lets it go on, and it is shown again later.
 */
function Bridge({ engine }: { engine: Engine }) {
  const { run, stop } = useGraphiQLActions();
  const tabs = useGraphiQL((state) => state.tabs);
  const active = useGraphiQL((state) => state.tabs[state.activeTabIndex]?.id ?? null);
  const { queryEditor, variableEditor, responseEditor } = useGraphiQL((state) => ({
    queryEditor: state.queryEditor,
    variableEditor: state.variableEditor,
    responseEditor: state.responseEditor,
  }));
  const started = useRef(false);
  const before = useRef<string | null>(null);

  // Before the browser can deliver another click, which may start an operation in the new tab.
  useLayoutEffect(() => {
    engine.activeTabId = active;
    if (before.current !== null && before.current !== active && active) {
      stop();
      engine.reattach(active, () => void run());
    }
    before.current = active;
  }, [engine, active, run, stop]);

  const ids = tabs.map((tab) => tab.id).join(" ");
  useEffect(() => engine.retain(ids.split(" ")), [engine, ids]);

  // GraphiQL opens with the text typed last, which need not be that of the tab in front.
  useEffect(() => {
    if (started.current || !queryEditor || !variableEditor) return;
    started.current = true;
    const tab = tabs.find((one) => one.id === active);
    if (tab && queryEditor.getValue() !== (tab.query ?? "")) queryEditor.setValue(tab.query ?? "");
    if (tab && variableEditor.getValue() !== (tab.variables ?? "")) variableEditor.setValue(tab.variables ?? "");
  }, [queryEditor, variableEditor, tabs, active]);

  useEffect(() => {
    for (const editor of [queryEditor, variableEditor, responseEditor]) {
      editor?.updateOptions({ wordWrap: "on", wrappingIndent: "deepIndent", fontSize: 13, lineNumbersMinChars: 3 });
    }
  }, [queryEditor, variableEditor, responseEditor]);

  // A growing list of events is followed to its end, as a terminal would.
  useEffect(() => {
    const listening = responseEditor?.onDidChangeModelContent(() => {
      const model = responseEditor.getModel();
      if (model?.getValue().startsWith('{\n  "stream":')) responseEditor.revealLine(model.getLineCount());
    });
    return () => listening?.dispose();
  }, [responseEditor]);
  return null;
}
