"""What a trained model does with a text, token by token: computed in `reading`, shown by `screen` and `page`."""
