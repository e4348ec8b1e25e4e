"""What the application does; knows no GraphQL and no HTTP."""
