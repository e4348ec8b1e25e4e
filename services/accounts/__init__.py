"""People: accounts, roles, permissions and sign-ins."""
