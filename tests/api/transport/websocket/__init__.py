"""graphql-transport-ws by the letter."""
