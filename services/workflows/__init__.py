"""Verbs that span many domains: writing an answer with memories, a model, tools and a sandbox."""

from services.workflows.answering import answer

__all__ = ["answer"]
