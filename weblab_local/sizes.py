"""Sizes as text: decimal as disks and downloads are counted, binary as memory is."""


def byte_count(n_bytes: float) -> str:
    """Return a size on a disk or a line: "6.31 GB", "5.1 MB", "812 kB"."""
    return model_size(n_bytes) if n_bytes >= 1e6 else f"{n_bytes / 1e3:.0f} kB"


def model_size(n_bytes: float) -> str:
    """Return a model's size: "6.31 GB", "5.1 MB", "0.0 MB"; one is never counted in kB."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def memory_size(n_bytes: float) -> str:
    """Return the memory of a machine or a device: "31.2 GiB"."""
    return f"{n_bytes / 2**30:.1f} GiB"


def memory_share(n_bytes: float) -> str:
    """Return what a part of a model takes of a memory: "5.72 GiB", "96.0 MiB"."""
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**27 else f"{n_bytes / 2**20:.1f} MiB"
