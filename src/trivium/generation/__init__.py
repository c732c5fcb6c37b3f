"""Prompts to continuations (`generate`, `stream`), and texts to log-likelihoods (`scoring`)."""
