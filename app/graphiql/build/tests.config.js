import { readdirSync } from "node:fs";

const tests = readdirSync("src").filter((name) => name.endsWith(".test.ts"));

export default {
  input: tests.map((name) => `src/${name}`),
  platform: "node",
  external: [/^node:/],
  output: { dir: "build/.tests", cleanDir: true, entryFileNames: "[name].js" },
};
