"""What a run was trained on, as one hash."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict


def content_hash(data: Dataset | DatasetDict) -> str:
    """SHA-256 (hex) over values, row order, column names and split names.

    Unlike `Dataset._fingerprint` it does not depend on the path, the file's time, chunking, the order of columns or
    splits, or the operations that led there: equal contents, equal hash, on every machine.

    Raises:
        TypeError: not a map-style data set.
    """
    digest = hashlib.sha256()
    if isinstance(data, DatasetDict):
        for split in sorted(data):
            digest.update(f"{json.dumps(split)}:{content_hash(data[split])}\n".encode())
    elif isinstance(data, Dataset):
        columns = sorted(data.column_names)
        digest.update(json.dumps(columns).encode())
        # Arrow rows: media stay bytes and no format set by the user gets in the way. `repr` for bytes and dates.
        for batch in data.with_format("arrow").iter(batch_size=1000):
            arrays = {name: values for name in columns if (values := _numbers(batch[name])) is not None}
            for row in batch.select([name for name in columns if name not in arrays]).to_pylist():
                digest.update(b"\n" + json.dumps(row, sort_keys=True, default=repr).encode())
            for name, values in arrays.items():
                digest.update(f"\n{name} {values.dtype.str} {values.shape}:".encode() + values.tobytes())
    else:
        raise TypeError(f"cannot hash a {type(data).__name__}: it must be a datasets.Dataset or DatasetDict")
    return digest.hexdigest()


def _numbers(column: pa.ChunkedArray) -> np.ndarray | None:
    """Lists that are all of one length by their type, as numbers (N, W); None for any other column.

    Made data of this kind have so many numbers that writing each as a word would take longer than making them.
    """
    kind = column.type
    numbers = pa.types.is_fixed_size_list(kind) and (
        pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)
    )
    if not numbers or column.null_count or (flat := column.combine_chunks().flatten()).null_count:
        return None
    values = flat.to_numpy(zero_copy_only=False).reshape(-1, kind.list_size)
    return values.astype(values.dtype.newbyteorder("<"))
