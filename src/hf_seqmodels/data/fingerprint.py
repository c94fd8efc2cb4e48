"""What a run was trained on, as one hash."""

from __future__ import annotations

import hashlib
import json

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
            for row in batch.select(columns).to_pylist():
                digest.update(b"\n" + json.dumps(row, sort_keys=True, default=repr).encode())
    else:
        raise TypeError(f"cannot hash a {type(data).__name__}: it must be a datasets.Dataset or DatasetDict")
    return digest.hexdigest()
