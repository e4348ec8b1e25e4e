"""The GraphQL contract."""
