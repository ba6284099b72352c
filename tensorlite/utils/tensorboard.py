"""``torch.utils.tensorboard``: the writer is that of tensorboardX, the extra ``[tensorboard]``."""

try:
    from tensorboardX import SummaryWriter
except ImportError as error:
    raise ImportError("tensorlite.utils.tensorboard needs tensorboardX: pip install 'tensorlite[tensorboard]'.") from error

__all__ = ["SummaryWriter"]
