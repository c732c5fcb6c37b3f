"""Text to ids and back: byte-level BPE, and conversations to ids with the mask of what is learned."""
