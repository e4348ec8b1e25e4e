import { createRoot } from "react-dom/client";
import "@graphiql/react/style.css";
import "graphiql/graphiql.css";
import "@graphiql/plugin-doc-explorer/style.css";
import "@graphiql/plugin-history/style.css";
import "./style.css";
import "./workers";
import { createApp } from "./app";

const root = document.getElementById("graphiql");
if (!root) throw new Error("The page has no element with the id graphiql.");
const { endpoint = "/graphql", title = "Noosphere" } = root.dataset;
const App = createApp({ endpoint, title });
createRoot(root).render(<App />);
