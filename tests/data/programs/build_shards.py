"""Build the same shards as others do at the same time; note in a log when documents are read and what came out."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from data.samples import ByteTokenizer
from trivium.data.shards import build_shards


def documents(log: Path) -> Iterator[str]:
    with log.open("a") as file:
        file.write("read\n")
    for number in range(30):
        time.sleep(0.02)
        yield f"document {number} " * 20_000


def main(target: str, log: str) -> None:
    shards = build_shards(documents(Path(log)), ByteTokenizer(), Path(target), made_from={"of": "all"}, verify=True)
    with Path(log).open("a") as file:
        file.write(f"{shards.index.fingerprint}-{shards.tokens(0, shards.num_tokens).sum()}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
