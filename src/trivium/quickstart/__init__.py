"""From nothing to a trained, measured language model, in the minutes asked for."""
