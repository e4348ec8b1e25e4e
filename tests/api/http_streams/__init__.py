"""Subscriptions over HTTP from a server as users run it."""
