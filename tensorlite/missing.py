"""What torch has and tensorlite does not have: for each name the reason, and what to write instead.

`tensorlite.conv3d` raises an AttributeError with this sentence; `python -m tensorlite.port script.py` prints it for each line of a program.
"""

from __future__ import annotations

from typing import Any, NoReturn

_LINEAR_ALGEBRA = "decompositions have no gradient here; where none is needed, take numpy.linalg on x.numpy() and tl.from_numpy()"
_CONVOLUTION = (
    "convolutions and pictures are not here, this is about text; over time, one of width k is nn.Linear on the k shifted inputs, "
    "joined with tl.cat(…, dim=-1)"
)
_POOLING = "pooling is not here, this is about text; over whole axes there are x.mean(dim) and x.amax(dim)"
_RECURRENT = "recurrent layers are not here; write the cell, two nn.Linear and a tanh, and a loop over time with tl.stack at its end"
_ATTENTION = "only its middle is here; write the nn.Linear layers around F.scaled_dot_product_attention, as gpt/model.py does"
_COMPLEX = "complex numbers are not here; keep the two parts as the last axis of a real tensor"
_COMPILED = "nothing is compiled here, the code runs as it is written; leave the call out"
_DISTRIBUTED = "there is one process here; step = tl.parallel.shared(model, optimizer) shares each batch among the cores"
_AUTOCAST = "precision is asked for around the whole step here: with tensorlite.precision.use_precision('bfloat16'), on a GPU"
_SPARSE = "sparse tensors are not here; a gradient of nn.Embedding is dense"
_SECOND_ORDER = "backward functions are plain array code, which is not recorded, so they have no gradient; call backward() and read .grad"
_OWN_OP = "an op of your own is two functions on arrays, tensorlite.op.Op(forward, backward); CONTRIBUTING.md shows one"
_OPTIMIZER = "the optimizers here are SGD, Adam, AdamW, RMSprop and Muon; for another rule, write p -= … under tl.no_grad()"
_SCHEDULE = "write it as a function of the step, for tl.optim.lr_scheduler.LambdaLR"
_DEFAULTS = "there are no settings for the whole process here; pass dtype and device where a tensor is made"
_THREADS = "threads belong to NumPy's BLAS: set OMP_NUM_THREADS before Python starts"
_DETERMINISTIC = "every run here gives the same bits; leave the call out"
_DISTRIBUTIONS = "distributions are not here; there are tl.multinomial, tl.bernoulli, tl.normal, tl.rand, and F.cross_entropy for -log p"
_ACTIVATION = "that activation is not here; there are relu, leaky_relu, elu, softplus, gelu, silu, sigmoid and tanh to write it with"
_NORMALISATION = "that normalisation is not here; there are nn.LayerNorm, nn.RMSNorm and nn.BatchNorm1d"
_LOSS = "that loss is not here; write its formula, the gradient follows from the ops"
_DATA = "batches are made in one process here; tensorlite.utils.data has Dataset, DataLoader, the samplers and random_split"
_PROFILER = "tensorlite.profile shows where the time goes, op by op"
_PACKAGE = "it needs torch itself"
_INITIAL = "that initial distribution is not here; under tl.no_grad(), x.copy_(…) writes any"
_GPU = "one stream, and no settings of the GPU beyond its choice, are here; leave the call out"

_WHY = {
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d "
    "ConvTranspose3d unfold fold Unfold Fold interpolate Upsample PixelShuffle pixel_shuffle grid_sample": _CONVOLUTION,
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d "
    "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveMaxPool2d adaptive_avg_pool1d adaptive_avg_pool2d": _POOLING,
    "RNN LSTM GRU RNNCell LSTMCell GRUCell": _RECURRENT,
    "MultiheadAttention Transformer TransformerEncoder TransformerDecoder TransformerEncoderLayer TransformerDecoderLayer "
    "multi_head_attention_forward": _ATTENTION,
    "complex complex64 complex128 cfloat cdouble real imag view_as_real view_as_complex polar angle conj fft stft istft": _COMPLEX,
    "compile jit fx export onnx _dynamo compiler library package": _COMPILED,
    "distributed multiprocessing DataParallel parallel DistributedDataParallel": _DISTRIBUTED,
    "autocast amp": _AUTOCAST,
    "sparse sparse_coo_tensor sparse_csr_tensor SparseAdam": _SPARSE,
    "svd svd_lowrank eig eigh qr lu inverse det logdet slogdet cholesky cholesky_solve linalg lstsq pinverse matrix_power matrix_exp "
    "matrix_rank kron cross": _LINEAR_ALGEBRA,
    "grad func functorch vmap jacobian hessian jvp vjp": _SECOND_ORDER,
    "autograd Function": _OWN_OP,
    "Adagrad Adadelta Adamax NAdam RAdam ASGD Rprop LBFGS Adafactor": _OPTIMIZER,
    "CyclicLR MultiplicativeLR ChainedScheduler swa_utils": _SCHEDULE,
    "set_default_dtype get_default_dtype set_default_device set_default_tensor_type set_printoptions": _DEFAULTS,
    "set_num_threads get_num_threads set_num_interop_threads": _THREADS,
    "use_deterministic_algorithms are_deterministic_algorithms_enabled": _DETERMINISTIC,
    "set_float32_matmul_precision get_float32_matmul_precision": _AUTOCAST,
    "distributions": _DISTRIBUTIONS,
    "relu6 ReLU6 selu SELU celu CELU mish Mish hardtanh Hardtanh hardswish Hardswish hardsigmoid Hardsigmoid softsign Softsign prelu "
    "PReLU rrelu RReLU glu GLU tanhshrink softshrink hardshrink threshold gumbel_softmax softmin Softmin": _ACTIVATION,
    "BatchNorm2d BatchNorm3d GroupNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d group_norm instance_norm LocalResponseNorm "
    "SyncBatchNorm weight_norm spectral_norm": _NORMALISATION,
    "CTCLoss ctc_loss TripletMarginLoss CosineEmbeddingLoss MarginRankingLoss HingeEmbeddingLoss PoissonNLLLoss GaussianNLLLoss "
    "MultiLabelMarginLoss MultiMarginLoss SoftMarginLoss triplet_margin_loss cosine_embedding_loss margin_ranking_loss "
    "hinge_embedding_loss poisson_nll_loss gaussian_nll_loss": _LOSS,
    "WeightedRandomSampler DistributedSampler SubsetRandomSampler ChainDataset get_worker_info": _DATA,
    "profiler bottleneck": _PROFILER,
    "torchvision torchaudio torchtext pytorch_lightning lightning ignite fastai accelerate timm torchmetrics torchinfo": _PACKAGE,
    "sparse_ dirac_": _INITIAL,
    "Stream Event stream memory_summary memory_stats reset_peak_memory_stats mem_get_info set_per_process_memory_fraction nvtx "
    "graphs CUDAGraph": _GPU,
}
_BY_NAME = {name: why for names, why in _WHY.items() for name in names.split()}

DEFAULT = (
    "it is not in the part of torch that is here, see docs/from-torch.md; what needs no gradient NumPy computes, on x.detach().numpy()"
)


def sentence(name: str) -> str:
    """A sentence about a dotted name, ``tensorlite.nn.Conv1d``: it is not here, why, and what to write instead.

    The last part of the name is looked up first. For ``tensorlite.distributed.init_process_group`` only the middle part is known.
    """
    parts = name.split(".")
    why = next((_BY_NAME[part] for part in (parts[-1], *parts) if part in _BY_NAME), DEFAULT)
    return f"{name} is not here: {why}."


def absent(name: str) -> type:
    """A class, or function, of that dotted name: to call it raises NotImplementedError with the sentence.

    For what programs import at their top and then, on one CPU, do not use.
    """

    def refuse(cls: type, *args: Any, **options: Any) -> NoReturn:
        raise NotImplementedError(sentence(name))

    return type(name.rpartition(".")[2], (), {"__new__": refuse, "__doc__": sentence(name), "is_absent": True})


def is_known(name: str) -> bool:
    """Whether the table has this name itself."""
    return name in _BY_NAME
