"""Conversations: threads of messages, and what answers are made from."""
