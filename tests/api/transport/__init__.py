"""GraphQL over HTTP and WebSocket, against a real server and other houses' clients."""
