"""Seeds for the many purposes of a run, all from the seed of the run."""

from __future__ import annotations

import zlib


def derive(seed: int, *labels) -> int:
    """A seed for one purpose of a run, from 0 to 2**31 - 1, through a hash.

    Sums and products of seeds pass the range of the backends, and two purposes may meet in one number.

    Args:
        seed: Seed of the run, of any size.
        labels: Name of the purpose, in as many parts as are handy: strings and integers.
    """
    return zlib.crc32("/".join(str(v) for v in (seed, *labels)).encode()) & 0x7FFFFFFF
