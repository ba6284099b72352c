"""NVIDIA's library of convolutions, which is not used; every kernel here is deterministic."""

enabled, benchmark, deterministic, allow_tf32 = False, False, True, False


def is_available() -> bool:
    """No."""
    return False


def version() -> None:
    """None: it is not there."""
