"""The command line.

options             of training and finetuning: one for each field of a dataclass
arguments           of the programs that use a trained model
synonyms            what an unknown option was probably meant to be
"""
