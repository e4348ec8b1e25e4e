"""Operations the API tests share, written as a frontend would."""

CREATE_CONVERSATION = """
mutation($title: String) { conversationCreate(input: {title: $title}) {
  conversation { id title status } errors { code message path } } }
"""
SEND = """
mutation($id: ID!, $content: String!, $key: String) {
  messageSend(input: {conversationId: $id, content: $content, idempotencyKey: $key}) {
    message { id role status } reply { id role status content } errors { code message path } } }
"""
MESSAGES = """
query($id: ID!) { conversation(id: $id) { id title messages(first: 100) { nodes {
  id role status content citedMemories { id content } error { code message }
  toolCalls { toolName status arguments result } } } } }
"""
CONVERSATION_EVENTS = """
subscription($id: ID!, $after: String) { conversationEvents(conversationId: $id, after: $after) {
  __typename cursor
  ... on MessageAdded { message { id role status } }
  ... on MessageDelta { message { id } offset text }
  ... on MessageCompleted { message { id status content } }
  ... on MessageFailed { message { id status error { code message } } }
  ... on ToolCallStarted { toolCall { toolName arguments } }
  ... on ToolCallFinished { toolCall { toolName status result } }
  ... on ConversationReset { conversation { id messages(first: 100) {
    nodes { id role status content } } } } } }
"""
CREATE_PLAN = """
mutation($input: PlanCreateInput!) { planCreate(input: $input) {
  plan { id status steps { orderIndex dependsOn { orderIndex } } }
  errors { code message path } } }
"""
EXECUTE_PLAN = """
mutation($id: ID!) { planExecute(id: $id) {
  execution { id status } errors { code message path } } }
"""
CANCEL_PLAN = """
mutation($id: ID!) { planExecutionCancel(id: $id) {
  execution { id status } errors { code message path } } }
"""
PLAN_EVENTS = """
subscription($id: ID!, $after: String) { planExecutionEvents(executionId: $id, after: $after) {
  __typename cursor
  ... on PlanStepStarted { step { orderIndex } }
  ... on PlanStepOutput { stepExecution { step { orderIndex } } offset text }
  ... on PlanStepFinished { step { orderIndex } stepExecution { status output attempt } }
  ... on PlanExecutionFinished { execution { status result } }
  ... on PlanExecutionReset { execution { status steps { status } } } } }
"""
PLAN_EXECUTION = """
query($id: ID!) { planExecution(id: $id) { id status errorDetails
  steps { status attempt output errorMessage step { orderIndex } } } }
"""
CREATE_SANDBOX = """
mutation($input: SandboxCreateInput) { sandboxCreate(input: $input) {
  sandbox { id status } errors { code message path } } }
"""
EXECUTE = """
mutation($input: SandboxExecuteInput!) { sandboxExecute(input: $input) {
  execution { id status } errors { code message path } } }
"""
OUTPUT = """
subscription($id: ID!, $after: String) { sandboxExecutionOutput(executionId: $id, after: $after) {
  __typename cursor
  ... on SandboxOutputChunk { stream text bytes }
  ... on SandboxExecutionExited { execution { id status reason exitCode stdout } }
  ... on SandboxOutputReset { execution { id status stdout } } } }
"""
EXECUTION = """
query($id: ID!) { sandboxExecution(id: $id) {
  id status reason exitCode stdout stderr completedAt } }
"""
EXECUTION_WRITE = """
mutation($input: SandboxExecutionWriteInput!) { sandboxExecutionWrite(input: $input) {
  execution { id stdinBytes } errors { code message path } } }
"""
EXECUTION_SIGNAL = """
mutation($input: SandboxExecutionSignalInput!) { sandboxExecutionSignal(input: $input) {
  execution { id status } errors { code message path } } }
"""
EXECUTION_RESIZE = """
mutation($input: SandboxExecutionResizeInput!) { sandboxExecutionResize(input: $input) {
  execution { id terminal { rows cols } } errors { code message path } } }
"""
PROCESSES = """
query($id: ID!, $status: RunState) { sandbox(id: $id) {
  processes { pid parentPid state startedAt cpuMilliseconds memoryBytes command execution { id } }
  executions(status: $status) { nodes { id status } } } }
"""
PROCESS_KILL = """
mutation($input: SandboxProcessKillInput!) { sandboxProcessKill(input: $input) {
  sandbox { id } errors { code message path } } }
"""
VIEWER_EVENTS = """
subscription($after: String) { viewerEvents(after: $after) {
  __typename cursor
  ... on ConversationChanged { id change conversation { id title status updatedAt } }
  ... on PlanChanged { id change plan { id title status } }
  ... on SandboxChanged { id change sandbox { id status } }
  ... on MemoryChanged { id change memory { id content importance } }
  ... on ViewerReset { viewer { id
    conversations(first: 100) { nodes { id title status updatedAt } }
    plans(first: 100) { nodes { id title status } }
    sandboxes(first: 100) { nodes { id status } }
    memories(first: 100) { nodes { id content importance } } } } } }
"""
PRESENCE = """
subscription($id: ID!) { conversationPresence(conversationId: $id) {
  __typename totalCount viewers { user { username } joinedAt deviceCount } } }
"""

DIAMOND = {
    "title": "Diamond",
    "steps": [
        {
            "description": "Begin",
            "tool": "run_code",
            "arguments": {"code": "print(6)"},
            "dependsOn": [],
        },
        {
            "description": "Left",
            "tool": "run_code",
            "arguments": {"code": "print({{steps.0.output}} * 2)"},
            "dependsOn": [0],
        },
        {
            "description": "Right",
            "tool": "run_code",
            "arguments": {"code": "print({{steps.0.output}} * 3)"},
            "dependsOn": [0],
        },
        {
            "description": "Join",
            "tool": "run_code",
            "arguments": {"code": "print({{steps.1.output}} + {{steps.2.output}})"},
            "dependsOn": [1, 2],
        },
    ],
}
