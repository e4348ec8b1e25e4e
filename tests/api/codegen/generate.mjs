// Generates TypeScript from a schema and operations, as graphql-codegen's command does.
// Arguments: the schema's file, the operations' file, the file to write.
import { readFileSync, writeFileSync } from "node:fs";
import { codegen } from "@graphql-codegen/core";
import * as typedDocumentNode from "@graphql-codegen/typed-document-node";
import * as typescript from "@graphql-codegen/typescript";
import * as operations from "@graphql-codegen/typescript-operations";
import { parse } from "graphql";

const [schema, documents, filename] = process.argv.slice(2);
const output = await codegen({
  filename,
  schema: parse(readFileSync(schema, "utf8")),
  documents: [{ location: documents, document: parse(readFileSync(documents, "utf8")) }],
  config: {
    // A scalar without a type here fails, rather than becoming `any`.
    strictScalars: true,
    scalars: { BigInt: "number", DateTime: "string", JSON: "unknown", Upload: "Blob" },
    useTypeImports: true,
    enumsAsTypes: true,
  },
  pluginMap: { typescript, operations, typedDocumentNode },
  plugins: [{ typescript: {} }, { operations: {} }, { typedDocumentNode: {} }],
});
writeFileSync(filename, output);
console.log(JSON.stringify({ bytes: output.length }));
