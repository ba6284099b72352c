"""``torch.utils.data``: samples by number (`dataset`), in some order (`sampler`), as batches (`dataloader`). All in one process.

A GPT's batches come from `data.loader`, which reads token files that are larger than the memory.
"""

from tensorlite.lazy import on_demand
from tensorlite.utils.data.dataloader import DataLoader, default_collate
from tensorlite.utils.data.dataset import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset, random_split
from tensorlite.utils.data.sampler import BatchSampler, RandomSampler, Sampler, SequentialSampler

__all__ = [
    "BatchSampler", "ConcatDataset", "DataLoader", "Dataset", "IterableDataset", "RandomSampler", "Sampler", "SequentialSampler", "Subset",
    "TensorDataset", "default_collate", "random_split",
]  # fmt: skip

__getattr__ = on_demand("tensorlite.utils.data", {})
