export interface Example {
  query: string;
  variables?: string;
}

const ERRORS = "errors { code message path }";
const MESSAGE = "message { role content status }";

/** The tabs a first visitor finds, in the order of the README's first minute. */
export function examples(account: { username: string; password: string }): Example[] {
  const register = {
    username: account.username,
    email: `${account.username}@example.org`,
    password: account.password,
  };
  return [
    {
      query: `# 1 · Register. The page keeps the session:
# the panel on the left shows who is signed
# in, and every later operation carries the
# token.
mutation Register(
  $username: String!
  $email: String!
  $password: String!
) {
  userRegister(
    input: {
      username: $username
      email: $email
      password: $password
    }
  ) {
    user { id username createdAt }
    session { token refreshToken expiresAt }
    ${ERRORS}
  }
}
`,
      variables: JSON.stringify(register, null, 2),
    },
    {
      query: `# 2 · Create a conversation. The page
# remembers its id for the tabs that
# follow.
mutation Converse {
  conversationCreate(input: {title: "First minute"}) {
    conversation { id title status createdAt }
    ${ERRORS}
  }
}
`,
    },
    {
      query: `# 3 · Watch the conversation. Run this,
# leave it running and go on to the next
# tab: events arrive under "Live events"
# whichever tab is in front.
# $conversationId is filled in with the
# last one.
${WATCH("Watch")}`,
    },
    {
      query: `# 4 · Ask for code to be run. The answer
# streams in below, its tool call runs in a
# sandbox, and 1024 arrives.
mutation RunCode($conversationId: ID!) {
  messageSend(
    input: {
      conversationId: $conversationId
      content: "run \`print(2**10)\`"
    }
  ) {
    message { id content }
    reply { id status }
    ${ERRORS}
  }
}
`,
    },
    {
      query: `# 5 · Memory. The button >> runs all four
# in order: tell it something, open a new
# conversation, watch that one, and ask
# there.
mutation Remember($conversationId: ID!) {
  messageSend(
    input: {
      conversationId: $conversationId
      content: "remember that I prefer metric units"
    }
  ) {
    reply { id status }
    ${ERRORS}
  }
}

mutation NewTopic {
  conversationCreate(input: {title: "Another topic"}) {
    conversation { id title }
    ${ERRORS}
  }
}

${WATCH("WatchTopic")}
mutation AskUnits($conversationId: ID!) {
  messageSend(
    input: {
      conversationId: $conversationId
      content: "what units do I prefer?"
    }
  ) {
    reply { id status }
    ${ERRORS}
  }
}
`,
    },
    {
      query: `# 6 · A plan of four steps in a diamond.
# The button >> creates it, executes it and
# watches each step. The two in the middle
# need only the first: they run side by
# side.
mutation Plan {
  planCreate(
    input: {
      title: "A diamond"
      steps: [
        {
          description: "Look at the clock"
          tool: "current_time"
        }
        {
          description: "Square"
          tool: "run_code"
          arguments: {code: "import time; time.sleep(1); print(32 ** 2)"}
          dependsOn: [0]
        }
        {
          description: "Power"
          tool: "run_code"
          arguments: {code: "import time; time.sleep(1); print(2 ** 10)"}
          dependsOn: [0]
        }
        {
          description: "Compare"
          tool: "run_code"
          arguments: {code: "print(32 ** 2 == 2 ** 10)"}
          dependsOn: [1, 2]
        }
      ]
    }
  ) {
    plan {
      id
      title
      steps {
        orderIndex
        description
        dependsOn { orderIndex }
      }
    }
    ${ERRORS}
  }
}

mutation RunPlan($planId: ID!) {
  planExecute(id: $planId) {
    execution { id status }
    ${ERRORS}
  }
}

subscription WatchPlan(
  $planExecutionId: ID!
  $after: String
) {
  planExecutionEvents(
    executionId: $planExecutionId
    after: $after
  ) {
    __typename
    cursor
    ... on PlanExecutionReset {
      execution {
        status
        steps { status step { orderIndex } }
      }
    }
    ... on PlanStepStarted {
      step { orderIndex description }
    }
    ... on PlanStepOutput {
      stepExecution { step { orderIndex } }
      offset
      text
    }
    ... on PlanStepFinished {
      step { orderIndex description }
      stepExecution { status output }
    }
    ... on PlanExecutionFinished {
      execution { status }
    }
  }
}
`,
    },
    {
      query: `# 7 · A sandbox. The button >> creates one,
# starts a loop in it and watches its lines
# arrive as they are printed, one every 200
# ms.
mutation Sandbox {
  sandboxCreate(input: {}) {
    sandbox { id status expiresAt }
    ${ERRORS}
  }
}

mutation RunLoop($sandboxId: ID!) {
  sandboxExecute(
    input: {
      sandboxId: $sandboxId
      command: "for i in 1 2 3 4 5 6 7 8 9 10; do echo line $i; sleep 0.2; done"
    }
  ) {
    execution { id status }
    ${ERRORS}
  }
}

subscription WatchOutput(
  $sandboxExecutionId: ID!
  $after: String
) {
  sandboxExecutionOutput(
    executionId: $sandboxExecutionId
    after: $after
  ) {
    __typename
    cursor
    ... on SandboxOutputReset {
      execution { status stdout }
    }
    ... on SandboxOutputChunk { stream text }
    ... on SandboxExecutionExited {
      execution { status exitCode reason }
    }
  }
}
`,
    },
  ];
}

function WATCH(name: string): string {
  return `subscription ${name}(
  $conversationId: ID!
  $after: String
) {
  conversationEvents(
    conversationId: $conversationId
    after: $after
  ) {
    __typename
    cursor
    ... on ConversationReset {
      conversation { title status }
    }
    ... on MessageAdded { ${MESSAGE} }
    ... on ToolCallStarted {
      toolCall { toolName arguments }
    }
    ... on ToolCallFinished {
      toolCall { toolName status result }
    }
    ... on MessageDelta { offset text }
    ... on MessageCompleted {
      message { content citedMemories { content } }
    }
    ... on MessageFailed {
      message { content error { code message } }
    }
  }
}
`;
}

const KEY = "noosphere:example-account";

/** The account of the first example: made up once per browser, so that no two share a password. */
export function exampleAccount(storage: Storage = window.localStorage): { username: string; password: string } {
  try {
    const stored = JSON.parse(storage.getItem(KEY) ?? "null") as { username: string; password: string } | null;
    if (stored?.username && stored.password) return stored;
  } catch {
    // A broken entry is replaced below.
  }
  const digits = crypto.getRandomValues(new Uint16Array(1))[0]! % 10_000;
  const letters = crypto.getRandomValues(new Uint8Array(20));
  const alphabet = "abcdefghijkmnpqrstuvwxyz23456789";
  const password = [...letters].map((byte) => alphabet[byte % alphabet.length]).join("");
  const account = { username: `ada${String(digits).padStart(4, "0")}`, password: `${password.slice(0, 10)}-${password.slice(10)}` };
  storage.setItem(KEY, JSON.stringify(account));
  return account;
}
