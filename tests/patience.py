"""How long a test waits before it takes another process for hung."""

PATIENCE = 600.0  # seconds: none that works comes near it, on however slow or busy a machine
