"""The command line.

options             of training and finetuning: one for each field of some dataclasses
arguments           of the programs that use a trained model
synonyms            advice on an unknown option
screen              the terminal that a program writes to
"""
