"""Ways to train a small part of a model, or a little beside it: selective, low-rank, adapters, soft prompts."""
