"""Text to ids and back: byte-level BPE learned here, all published kinds loaded; conversations to ids and masks."""
