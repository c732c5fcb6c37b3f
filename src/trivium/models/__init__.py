"""Ids to hidden states to logits: config, positions, layers, attention with its cache, transformer, counts."""
