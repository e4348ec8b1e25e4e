import { existsSync, readFileSync, readdirSync } from "node:fs";
import { dirname, join, sep } from "node:path";

/** The package directory a module was read from, or null for our own sources. */
function packageOf(id) {
  const mark = `${sep}node_modules${sep}`;
  const path = id.replace(/^\0/, "").replace(/\?.*$/, "");
  if (!path.includes(mark)) return null;
  for (let at = dirname(path); at.includes(mark); at = dirname(at)) {
    const file = join(at, "package.json");
    if (existsSync(file) && JSON.parse(readFileSync(file, "utf8")).name) return at;
  }
  return null;
}

/** Write dist/THIRD-PARTY-NOTICES.txt: the licences of every package that went into the bundle. */
export function notices() {
  const packages = new Set();
  return {
    name: "noosphere-notices",
    apply: "build",
    moduleParsed({ id }) {
      const found = packageOf(id);
      if (found) packages.add(found);
    },
    generateBundle() {
      const texts = [...packages].map((at) => {
        const { name, version, license } = JSON.parse(readFileSync(join(at, "package.json"), "utf8"));
        const file = readdirSync(at).sort().find((entry) => /^licen[cs]e/i.test(entry));
        const text = file ? readFileSync(join(at, file), "utf8").replace(/\r\n/g, "\n").trim() : "";
        return `${name} ${version} (${license ?? "see below"})\n\n${text}`.trim();
      });
      const unique = [...new Set(texts)].sort();
      const source = `${unique.join(`\n\n${"-".repeat(80)}\n\n`)}\n`;
      this.emitFile({ type: "asset", fileName: "THIRD-PARTY-NOTICES.txt", source });
    },
  };
}
