declare module "monaco-editor/esm/vs/editor/editor.worker.js?worker" {
  const constructor: new () => Worker;
  export default constructor;
}
declare module "monaco-editor/esm/vs/language/json/json.worker.js?worker" {
  const constructor: new () => Worker;
  export default constructor;
}
declare module "monaco-graphql/esm/graphql.worker.js?worker" {
  const constructor: new () => Worker;
  export default constructor;
}
declare var MonacoEnvironment: { getWorker(workerId: string, label: string): Worker };
