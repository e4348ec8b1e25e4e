import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";
import { manifest } from "./build/manifest.js";
import { notices } from "./build/notices.js";

/**
 * The bundle is committed, so a build of the same sources must give the same bytes:
 * hashed names only, no source maps, no timestamps. `base: "./"` keeps every chunk, worker and
 * font relative to its importer, so the page may be mounted under any prefix.
 */
export default defineConfig({
  base: "./",
  plugins: [react(), notices(), manifest()],
  build: {
    target: "es2022",
    outDir: "dist",
    emptyOutDir: true,
    sourcemap: false,
    // Fonts and icons stay files of their own, so that the style sheet is small.
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 4096,
    rolldownOptions: { input: { main: "src/main.tsx" } },
    // The polyfill is an inline script in disguise; every browser we target preloads modules.
    modulePreload: { polyfill: false },
  },
  worker: { format: "es" },
});
