"""Many or large logs at once: batches of their lines are loaded natively while the next is filled."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import duckdb

from fluxcore.log import LogReader

from .batch import Piece
from .bulk import Folded, Loader

_MOST = 2
_Loading = deque[tuple[Loader, Future[list[Folded]]]]


class Loaders:
    """At most two batches that are being loaded. Their memory is kept for the next reading."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self._loaders: list[Loader] = []

    def read(
        self,
        logs: dict[str, LogReader],
        take: Callable[[Piece, Folded], None],
        failed: Callable[[str, OSError], None],
    ) -> int:
        """Read what is new in `logs`: `take` each piece of them in its log's order. Returns the bytes read.

        A log that can't be read is left where it broke off, after all before it was taken, and told to `failed`.
        """
        self._read_bytes = 0
        with ThreadPoolExecutor(_MOST, "history") as pool:
            loading = _Loading()
            loader = self._free(loading, take)
            for name, reader in logs.items():
                whole = False
                while not whole:
                    try:
                        whole = loader.batch.fill(name, reader)
                    except OSError as error:
                        loader.batch.drop_last()
                        while loading:
                            self._finish(loading, take)
                        failed(name, error)
                        break
                    if loader.batch.is_full:
                        loading.append((loader, pool.submit(loader.load)))
                        loader = self._free(loading, take)
            loading.append((loader, pool.submit(loader.load)))
            while loading:
                self._finish(loading, take)
        return self._read_bytes

    def clear(self) -> None:
        """Forget what is filled."""
        for loader in self._loaders:
            loader.batch.clear()

    def close(self) -> None:
        """Give the memory back."""
        for loader in self._loaders:
            loader.close()

    def _free(self, loading: _Loading, take: Callable[[Piece, Folded], None]) -> Loader:
        if len(loading) == _MOST:
            self._finish(loading, take)
        busy = {id(loader) for loader, _ in loading}
        for loader in self._loaders:
            if id(loader) not in busy:
                return loader
        connection = self._connection.cursor()
        connection.execute("SET TimeZone = 'UTC'; USE history")
        self._loaders.append(Loader(connection))
        return self._loaders[-1]

    def _finish(self, loading: _Loading, take: Callable[[Piece, Folded], None]) -> None:
        loader, loaded = loading.popleft()
        self._read_bytes += loader.batch.size
        for piece, folded in zip(loader.batch.pieces, loaded.result(), strict=True):
            take(piece, folded)
        loader.batch.clear()
