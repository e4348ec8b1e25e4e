"""Isolated execution of code: drivers, the agent inside, and the client that speaks with it."""
