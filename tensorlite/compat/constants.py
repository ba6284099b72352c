"""Numbers and types under torch's names. A dtype is NumPy's: ``tl.float32 == np.dtype("float32")``, and prints as float32."""

from math import e, inf, nan, pi

import numpy as np

from tensorlite.backend import Device

device = Device
float = np.dtype("float32")
double = np.dtype("float64")
half = np.dtype("float16")
int8 = np.dtype("int8")
int16 = short = np.dtype("int16")
int = np.dtype("int32")
bool = np.dtype("bool")
dtype = np.dtype
Size = tuple
finfo, iinfo = np.finfo, np.iinfo

__all__ = [
    "Size",
    "bool",
    "device",
    "double",
    "dtype",
    "e",
    "finfo",
    "float",
    "half",
    "iinfo",
    "inf",
    "int",
    "int8",
    "int16",
    "nan",
    "pi",
    "short",
]  # fmt: skip
