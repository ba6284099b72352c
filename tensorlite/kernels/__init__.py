"""The workshop: faster pairs for ops of the book. Importing this package registers them."""
