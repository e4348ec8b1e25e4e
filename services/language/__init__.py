"""Understanding language without any model provider: embeddings, facts, plans in outline."""
