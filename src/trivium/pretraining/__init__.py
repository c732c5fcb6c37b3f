"""Ways to make a task out of raw text; so far: predict the next token."""
