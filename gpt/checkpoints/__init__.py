"""Models and runs on disk.

loading             load a model from any kind of folder
model_folder        a folder of ours: weights, config and tokenizer in one file
hugging_face        published weights of GPT-2 and Llama's family: folders as transformers writes them
llama_layout        Llama's names, shapes and settings there
adapter             LoRA's corrections in files of their own
peft_adapter        the same in PEFT's format
weights             safetensors files: read the header first, check the shapes, compare a checksum
training_state      all that a training run is at one moment, as files
snapshot            a folder of files that is complete or absent
retention           which snapshots of a run are kept: the last few and the best
"""
