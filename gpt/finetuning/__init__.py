"""Finetuning: training that begins with a trained model.

run, config         a run of finetuning, and its settings
tasks               the three tasks: continue a text, answer (instructions), classify (classifier)
freezing, lora      train a part of the weights, or a small correction to them
find_template       the form of a model's conversations
records             examples from a .jsonl or .csv file
"""
