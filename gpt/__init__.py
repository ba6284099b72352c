"""A GPT on tensorlite: the model, how it is trained, and how it writes."""
