import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join, posix, relative, sep } from "node:path";

/** What the bundle is built from, relative to the npm project. The Python side hashes the same. */
export const SOURCES = ["src", "build", "public", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts"];

const posixPath = (path) => path.split(sep).join(posix.sep);
const sha256 = (path) => createHash("sha256").update(readFileSync(path)).digest("hex");

/** All files below `root/start` but hidden ones, sorted by their path from `root`. */
function files(root, start) {
  const whole = join(root, start);
  let entries;
  try {
    entries = readdirSync(whole, { withFileTypes: true });
  } catch (error) {
    if (error.code === "ENOTDIR") return [start];
    throw error;
  }
  return entries
    .filter((entry) => !entry.name.startsWith("."))
    .flatMap((entry) => files(root, posixPath(join(start, entry.name))));
}

function digests(root, starts) {
  const paths = starts.flatMap((start) => files(root, start)).sort();
  return Object.fromEntries(paths.map((path) => [path, sha256(join(root, path))]));
}

/** Write dist/manifest.json: the entry points, and digests of all sources and all results. */
export function manifest() {
  let config;
  const entry = {};
  return {
    name: "noosphere-manifest",
    apply: "build",
    configResolved(resolved) {
      config = resolved;
    },
    writeBundle(_options, bundle) {
      for (const chunk of Object.values(bundle)) {
        if (chunk.type !== "chunk" || !chunk.isEntry) continue;
        entry.script = chunk.fileName;
        entry.styles = [...(chunk.viteMetadata?.importedCss ?? [])].sort();
      }
    },
    closeBundle() {
      const out = join(config.root, config.build.outDir);
      const names = readdirSync(out).filter((name) => name !== "manifest.json");
      const content = { entry, sources: digests(config.root, SOURCES), files: digests(out, names) };
      writeFileSync(join(out, "manifest.json"), `${JSON.stringify(content, null, 2)}\n`);
      const total = relative(config.root, out);
      config.logger.info(`${total}: ${Object.keys(content.files).length} files in the manifest`);
    },
  };
}
