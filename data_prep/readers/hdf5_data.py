"""Datasets of an HDF5 file, of which nothing is read that was never stored, or is gone.

HDF5 gives the fill value, zero most often, without a word: for chunks that were never written, for
parts of a virtual dataset whose file is gone, and for what a raw file outside lacks at its end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.readers.hdf5_links import UNREADABLE, check_beside, child, is_dataset
from fmcortex.errors import DataError

#: The numbers of filters up to this are those of HDF5 itself.
_FILTERS_OF_HDF5 = 255
_ZSTANDARD = 32015


class Data:
    """A dataset, of which parts are read as they are needed.

    Attributes:
        source: file and path, for messages.
        file: that it is in, which is another one where an external link led to it.
        shape: of it.
        dtype: of it.
        attrs: its attributes.
    """

    def __init__(self, dataset: Any, source: str) -> None:
        """Check that all it is made of is there, as far as that can be told at once.

        Raises:
            DataError: it is no dataset or has no values, a filter or a file is missing, or it was
                never written.
        """
        if not is_dataset(dataset):
            raise DataError(f"{source}: is a group, not a dataset")
        if dataset.shape is None:
            raise DataError(f"{source}: is an empty dataset, without values")
        self._dataset, self.source, self.file = dataset, source, dataset.file
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype: np.dtype = dataset.dtype
        self.attrs = dataset.attrs
        self._filters = _filters(dataset, source)
        self._zstandard = dataset.chunks is not None and _last_filter(dataset) == _ZSTANDARD
        self._gaps = _reads_as_missing(dataset)
        self._whole: bool | None = None
        if dataset.chunks is None or self._gaps or self.dtype.kind not in "biuf":
            self._whole = True
        if dataset.is_virtual:
            _check_virtual(dataset, source, self._gaps)
        elif dataset.external:
            _check_external(dataset, source)
        elif self._whole and not self._gaps and not _is_stored(dataset):
            raise DataError(f"{source}: no values were ever written to it")

    def __getitem__(self, part: Any) -> np.ndarray:
        """A part of it, as numpy gives it.

        Args:
            part: a slice, or a tuple of them, without steps.

        Raises:
            DataError: it cannot be read, or a chunk of the part was never written.
        """
        try:
            values = np.asarray(self._dataset[part if self.shape else ()])
        except UNREADABLE as error:
            said = " ".join(str(error).split())
            raise DataError(f"{self.source}: cannot read{self._filters}: {said}") from error
        slices = part if isinstance(part, tuple) else (part,)
        if values.size and self._whole is None and self.file.driver != "fileobj":
            self.is_whole()
        if not self._whole and values.size:
            self._check_written(slices, values)
        if self._zstandard:
            self._check_frames(slices)
        return values

    def is_whole(self) -> bool:
        """Whether all its chunks were written."""
        if self._whole is None:
            chunks = zip(self.shape, self._dataset.chunks, strict=True)
            count = math.prod(-(-length // size) for length, size in chunks)
            self._whole = self._dataset.id.get_num_chunks() == count
        return self._whole

    def _chunks(self, part: tuple[Any, ...]) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """The corners of the chunks that a part lies in, and where in the part each is."""
        axes = []
        for axis, (length, size) in enumerate(zip(self.shape, self._dataset.chunks, strict=True)):
            first, last, _ = (part[axis] if axis < len(part) else slice(None)).indices(length)
            starts = range(first // size * size, last, size)
            axes.append([(at, slice(max(at - first, 0), at + size - first)) for at in starts])
        for place in product(*axes):
            yield tuple(at for at, _ in place), tuple(block for _, block in place)

    def _check_frames(self, part: tuple[Any, ...]) -> None:
        """Refuse a damaged chunk of Zstandard.

        The plugin passes over what the library says is wrong: such a chunk reads as whatever was
        in memory.
        """
        from numcodecs.zstd import Zstd

        size = math.prod(self._dataset.chunks) * self.dtype.itemsize
        for corner, _ in self._chunks(part):
            try:
                unfiltered, content = self._dataset.id.read_direct_chunk(corner)
            except UNREADABLE:
                continue  # it was never written, and reads as NaN
            if unfiltered:
                continue
            try:
                found = len(Zstd().decode(content))
            except (RuntimeError, ValueError) as error:
                raise DataError(
                    f"{self.source}: the chunk at {list(corner)} is damaged{self._filters}: {error}"
                ) from error
            if found != size:
                raise DataError(
                    f"{self.source}: the chunk at {list(corner)} is damaged{self._filters}: it has"
                    f" {found} bytes of {size}"
                )

    def _check_written(self, part: tuple[Any, ...], values: np.ndarray) -> None:
        """Refuse values that are of a chunk that was never written.

        Whether it was is asked only of chunks that hold nothing but the fill value: to ask takes a
        walk through the index of all chunks, and of a file at a URL that is many requests.
        """
        fill = self._dataset.fillvalue
        known = _fill_is_known(self._dataset)
        same = values == fill if known else np.ones(values.shape, bool)
        for corner, block in self._chunks(part):
            if not same[block].all():
                continue
            if self.is_whole():
                return
            if self._dataset.id.get_chunk_info_by_coord(corner).byte_offset is None:
                reads = str(fill) if known else "anything"
                raise DataError(
                    f"{self.source}: the chunk at {list(corner)} was never written, and would read"
                    f" as {reads}; was the file written to its end?"
                )


def _is_stored(dataset: Any) -> bool:
    """Whether a dataset in one piece has values in the file."""
    return 0 in dataset.shape or dataset.chunks is not None or dataset.id.get_storage_size() > 0


def _reads_as_missing(dataset: Any) -> bool:
    """Whether what was never stored reads as NaN, and so is missing."""
    numbers = dataset.dtype.kind == "f" and _fill_is_known(dataset)
    return numbers and bool(np.isnan(dataset.fillvalue))


def _fill_is_known(dataset: Any) -> bool:
    import h5py

    made = dataset.id.get_create_plist()
    return bool(made.fill_value_defined() != h5py.h5d.FILL_VALUE_UNDEFINED)


def _last_filter(dataset: Any) -> int | None:
    """The number of the filter that the chunks as stored came from."""
    made = dataset.id.get_create_plist()
    count = made.get_nfilters()
    return made.get_filter(count - 1)[0] if count else None


def _filters(dataset: Any, source: str) -> str:
    """In words for messages, the filters of plugins that a dataset was written with."""
    import h5py

    made = dataset.id.get_create_plist()
    named = []
    for number in range(made.get_nfilters()):
        code, _, _, name = made.get_filter(number)
        short = name.decode(errors="replace").partition(";")[0]
        label = f"{short or 'a filter'} ({code})"
        if not h5py.h5z.filter_avail(code):
            raise DataError(
                f"{source}: was written with {label}, which HDF5 does not have by itself; install"
                " it, most often with pip install hdf5plugin"
            )
        if code > _FILTERS_OF_HDF5 and code != h5py.h5z.FILTER_LZF:
            named.append(label)
    return f" (written with {', '.join(named)} of hdf5plugin)" if named else ""


def _beside(dataset: Any, name: str, source: str) -> Path:
    """The file `name` that a dataset's values are in, which is in the folder of the file.

    As HDF5 has it: of a path that is not there any more, a file of the same name in the folder.
    """
    path = Path(dataset.file.filename).absolute().parent / name
    if Path(name).is_absolute() and not path.is_file() and not dataset.external:
        path = Path(dataset.file.filename).absolute().parent / path.name
    check_beside(dataset.file, path, f"{source}: its values are in")
    if not path.is_file():
        raise DataError(f"{source}: its values are in {path}, which is missing")
    return path


def _check_external(dataset: Any, source: str) -> None:
    """Refuse a dataset whose raw files lack or are cut."""
    left = math.prod(dataset.shape) * dataset.dtype.itemsize
    for name, offset, size in dataset.external:
        path = _beside(dataset, name, source)
        there, size = path.stat().st_size, min(size, left)
        if there < offset + size:
            raise DataError(
                f"{source}: its values are in {path}, which is cut: {there} bytes of"
                f" {offset + size}"
            )
        left -= size


def _check_virtual(dataset: Any, source: str, gaps: bool) -> None:
    """Refuse a dataset made of others, of which one, or a part of one, is not there."""
    import h5py

    mapped, total = 0, math.prod(dataset.shape)
    for part in dataset.virtual_sources():
        if "%" in part.file_name or "%" in part.dset_name:
            raise DataError(
                f"{source}: is made of any number of files {part.file_name}, of which one that is"
                " missing cannot be told; copy the values into one dataset"
            )
        everything = part.vspace.get_select_type() == h5py.h5s.SEL_ALL
        mapped += total if everything else part.vspace.get_select_npoints()
        if part.file_name == ".":
            _check_source(dataset.file, part, source)
            continue
        path = _beside(dataset, part.file_name, source)
        try:
            file = h5py.File(path, "r")
        except UNREADABLE as error:
            raise DataError(
                f"{source}: cannot open {path}, which it is made of: {error}"
            ) from error
        with file:
            _check_source(file, part, f"{source}: is made of {path}")
    if mapped < total and not gaps:
        raise DataError(
            f"{source}: only {mapped} of its {total} values come from a file; the others would"
            " read as the fill value"
        )


def _check_source(file: Any, part: Any, source: str) -> None:
    """Check the dataset that a part of a virtual one comes from."""
    import h5py

    data = Data(child(file, part.dset_name, source), f"{source}: {part.dset_name}")
    space = part.src_space
    if space.get_select_type() == h5py.h5s.SEL_HYPERSLABS:
        try:
            _, last = space.get_select_bounds()
        except ValueError:  # without an end: as much as there is
            last = ()
        if any(at >= length for at, length in zip(last, data.shape, strict=False)):
            raise DataError(f"{data.source}: has shape {list(data.shape)}, and more is taken of it")
    if not data.is_whole():
        raise DataError(f"{data.source}: some of its chunks were never written")
