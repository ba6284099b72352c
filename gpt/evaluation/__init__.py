"""What a model knows, in figures that can be compared between models.

measures            the four figures: perplexity, bits a byte, cloze and multiple choice, with their standard errors
examples            passages and questions from a .jsonl file, in the shapes of LAMBADA, HellaSwag and ARC
samples             small tasks made from a text that every machine has
results             a file of results, and the table of several models
"""
