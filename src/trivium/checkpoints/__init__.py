"""Model directories in and out, and a run store that survives a crash at any moment."""
