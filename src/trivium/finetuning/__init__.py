"""Making a pretrained model better at a task; so far: classification of texts."""
