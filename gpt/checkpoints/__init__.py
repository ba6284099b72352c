"""Models and runs on disk.

loading             a model from whichever kind of folder it is in
model_folder        a folder of ours: weights, config and tokenizer in one file
hugging_face        folders as transformers writes them for GPT-2
weights             safetensors files: the header first, then the numbers, held against a checksum
training_state      all that a training run is at one moment, as files
snapshot            a folder of files that is whole or not there
retention           which snapshots of a run are kept: the last few and the best
"""
