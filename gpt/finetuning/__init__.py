"""Teaching a trained model something more.

run, config         a run of that kind, and its settings
tasks               what there is to learn, as trainers; instructions, classifier: two of them
freezing, lora      learning with a part of the weights, or with a small correction to them
records             examples from a .jsonl or .csv
"""
