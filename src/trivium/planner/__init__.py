"""From settings alone, before anything runs: what a training run needs. Torch is never imported here."""
