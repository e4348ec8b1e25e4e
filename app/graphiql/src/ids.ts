import {
  type DocumentNode,
  type FieldNode,
  type FragmentDefinitionNode,
  type GraphQLOutputType,
  type GraphQLSchema,
  getNamedType,
  isCompositeType,
  isInterfaceType,
  isNonNullType,
  isObjectType,
  Kind,
  type OperationDefinitionNode,
  type SelectionSetNode,
  typeFromAST,
  visit,
} from "graphql";
import { Store } from "./observable";

/** The last id that a mutation answered with, by the name of its type. */
export type Ids = Readonly<Record<string, string>>;

/** One variable that was filled in: `$name` got the id of the last `type`. */
export interface Filled {
  name: string;
  type: string;
  id: string;
}

const KEY = "noosphere:ids";

/** The remembered ids; kept for as long as the browser tab lives. */
export class RememberedIds extends Store<Ids> {
  constructor(private readonly storage: Storage = window.sessionStorage) {
    super(parse(storage.getItem(KEY)));
  }

  remember(found: Ids): void {
    if (!Object.keys(found).length) return;
    const all = { ...this.get(), ...found };
    this.storage.setItem(KEY, JSON.stringify(all));
    this.set(all);
  }

  forget(): void {
    this.storage.removeItem(KEY);
    this.set({});
  }
}

function parse(text: string | null): Ids {
  try {
    return (JSON.parse(text ?? "{}") ?? {}) as Ids;
  } catch {
    return {};
  }
}

/** The operation that will run: the named one, or the only one. */
export function operationOf(document: DocumentNode, name?: string | null): OperationDefinitionNode | null {
  const all = document.definitions.filter((node) => node.kind === Kind.OPERATION_DEFINITION);
  if (name) return all.find((node) => node.name?.value === name) ?? null;
  return all[0] ?? null;
}

/** The ids in the answer of a mutation, by type; of several of one type, the last one. */
export function idsIn(
  schema: GraphQLSchema,
  document: DocumentNode,
  operation: OperationDefinitionNode,
  data: Record<string, unknown>,
): Ids {
  const root = schema.getRootType(operation.operation);
  const found: Record<string, string> = {};
  if (!root) return found;
  const fragments = new Map<string, FragmentDefinitionNode>();
  for (const node of document.definitions) {
    if (node.kind === Kind.FRAGMENT_DEFINITION) fragments.set(node.name.value, node);
  }

  function take(value: unknown, type: GraphQLOutputType, selections: SelectionSetNode | undefined): void {
    if (Array.isArray(value)) {
      for (const item of value) take(item, type, selections);
      return;
    }
    const named = getNamedType(type);
    if (value === null || typeof value !== "object" || !selections || !isCompositeType(named)) return;
    const record = value as Record<string, unknown>;
    const actual = typeof record.__typename === "string" ? record.__typename : named.name;
    inside(record, actual, selections);
  }

  function inside(record: Record<string, unknown>, typeName: string, selections: SelectionSetNode): void {
    const type = schema.getType(typeName);
    for (const selection of selections.selections) {
      if (selection.kind === Kind.FIELD) {
        field(record, typeName, selection);
      } else {
        const fragment =
          selection.kind === Kind.INLINE_FRAGMENT ? selection : fragments.get(selection.name.value);
        const on = fragment?.typeCondition?.name.value ?? typeName;
        // Of an abstract type only the fragment for the actual type, when that is known, applies.
        if (fragment && (on === typeName || !isObjectType(type) || isInterfaceType(schema.getType(on)))) {
          inside(record, isObjectType(type) ? typeName : on, fragment.selectionSet);
        }
      }
    }
  }

  function field(record: Record<string, unknown>, typeName: string, selection: FieldNode): void {
    const type = schema.getType(typeName);
    const value = record[selection.alias?.value ?? selection.name.value];
    if (!isObjectType(type) && !isInterfaceType(type)) return;
    const definition = type.getFields()[selection.name.value];
    if (!definition) return;
    if (selection.name.value === "id" && typeof value === "string" && isObjectType(type)) found[typeName] = value;
    else take(value, definition.type, selection.selectionSet);
  }

  inside(data, root.name, operation.selectionSet);
  return found;
}

const pascal = (name: string): string => name.charAt(0).toUpperCase() + name.slice(1);
const camel = (name: string): string => name.charAt(0).toLowerCase() + name.slice(1);

/** The type whose id a variable asks for, judged by its name and by the field it is used in. */
function wanted(schema: GraphQLSchema, name: string, argument: string, field: string): string | null {
  for (const candidate of [name, argument]) {
    const base = pascal(candidate.replace(/Id$/, ""));
    if (candidate.endsWith("Id") && isObjectType(schema.getType(base))) return base;
  }
  // `planExecute(id:)` means a Plan, `planExecutionCancel(id:)` a PlanExecution: the longest name
  // the field starts with; `planExecutionEvents(executionId:)` one that ends with Execution too.
  const ending = argument === "id" ? "" : pascal(argument.replace(/Id$/, ""));
  const matches = Object.values(schema.getTypeMap())
    .filter((type) => isObjectType(type) && "id" in type.getFields())
    .map((type) => type.name)
    .filter((type) => field.startsWith(camel(type)) && type.endsWith(ending));
  matches.sort((left, right) => right.length - left.length);
  return matches[0] ?? null;
}

export interface FillResult {
  variables: Record<string, unknown>;
  filled: Filled[];
  /** Required ids that are neither given nor remembered, with the type they are of. */
  missing: { name: string; type: string }[];
}

/** Fill required `ID` variables that have no value with the last id of the type they ask for. */
export function fill(
  schema: GraphQLSchema,
  operation: OperationDefinitionNode,
  given: Record<string, unknown>,
  ids: Ids,
): FillResult {
  const variables = { ...given };
  const filled: Filled[] = [];
  const missing: { name: string; type: string }[] = [];
  const uses = usesOf(operation);
  for (const definition of operation.variableDefinitions ?? []) {
    const name = definition.variable.name.value;
    const type = typeFromAST(schema, definition.type as never);
    if (!type || !isNonNullType(type) || getNamedType(type).name !== "ID" || !("name" in type.ofType)) continue;
    if (definition.defaultValue || (variables[name] ?? "") !== "") continue;
    const use = uses.get(name);
    const of = wanted(schema, name, use?.argument ?? name, use?.field ?? "");
    if (!of) continue;
    const id = ids[of];
    if (id) {
      variables[name] = id;
      filled.push({ name, type: of, id });
    } else {
      missing.push({ name, type: of });
    }
  }
  return { variables, filled, missing };
}

function usesOf(operation: OperationDefinitionNode): Map<string, { argument: string; field: string }> {
  const uses = new Map<string, { argument: string; field: string }>();
  const fields: string[] = [];
  const names: string[] = [];
  visit(operation, {
    VariableDefinition: () => false,
    Field: {
      enter: (node) => void fields.push(node.name.value),
      leave: () => void fields.pop(),
    },
    Argument: {
      enter: (node) => void names.push(node.name.value),
      leave: () => void names.pop(),
    },
    ObjectField: {
      enter: (node) => void names.push(node.name.value),
      leave: () => void names.pop(),
    },
    Variable: (node) => {
      const argument = names.at(-1);
      if (argument && !uses.has(node.name.value)) {
        uses.set(node.name.value, { argument, field: fields.at(-1) ?? "" });
      }
    },
  });
  return uses;
}
