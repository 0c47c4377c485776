"""Every group, dataset and attribute of a good NWB file is removed, retyped, emptied or reshaped.

Whatever is done to it, the file is refused in one line that names it and a path within, or read to
the same arrays as before; what a file may lack, or may say otherwise, is listed here.
"""

import re

import h5py
import numpy as np
import pytest
from nwb_scan import NAME, Scan

from data_prep.readers.nwb import NwbReader
from data_prep.settings import PrepSettings
from data_prep.survey import check_session, join, survey_part
from fmcortex.errors import DataError

#: What may be changed so that the file means something else, and is read as that.
MEANS_ELSE = (
    r"general(/subject)?: (removed|empty)",
    r"general/subject/subject_id: (removed|text)",
    r"processing/ophys/Fluorescence/RoiResponseSeries\d: removed",
    r".*ImagingPlane\d(: empty|/origin_coords: (removed|@unit .*))",
    r".*/imaging_plane: removed",
    r".*/data: @(conversion|offset) (removed|number)",
    r"intervals/Clip/condition_hash: numbers",
)


def kinds(dataset):
    """What may be done to a dataset: a name, and what to put there."""
    values = dataset[()]
    yield "group", None
    yield "nothing", h5py.Empty("f8")
    yield "number", 7.0
    yield "text", "x"
    if not isinstance(values, np.ndarray):
        yield "list", np.array([values, values])
        return
    yield "empty", values[:0]
    yield "another axis", values[..., None]
    if values.dtype.kind == "O":
        yield "numbers", np.arange(values.size, dtype=float).reshape(values.shape)
    else:
        yield "texts", np.full(values.shape, b"x", "S1")
    yield "complex", np.zeros(values.shape, complex)
    yield "compound", np.zeros(values.shape, [("a", "f8"), ("b", "i4")])
    if values.dtype.kind == "f":
        yield "NaN", np.full(values.shape, np.nan)
    if len(values) > 1:
        yield "shorter", values[1:]


ATTRIBUTES = {
    "removed": None,
    "number": 7.0,
    "text": "x",
    "numbers": np.arange(3),
    "NaN": np.nan,
    "nothing": h5py.Empty("f8"),
}
LINKS = {
    "circle": lambda path: h5py.SoftLink(f"/{path}"),
    "dangling": lambda path: h5py.SoftLink("/not/there"),
    "file that is gone": lambda path: h5py.ExternalLink("gone.nwb", f"/{path}"),
}


def put(file, path, value):
    attributes = dict(file[path].attrs)
    del file[path]
    made = file.create_group(path) if value is None else file.create_dataset(path, data=value)
    made.attrs.update(attributes)


def cases(file):
    """Names of all that can be done to a file, and how."""
    paths = []
    file.visit(paths.append)
    for path in paths:
        found = file[path]
        yield f"{path}: removed", lambda f, p=path: f.__delitem__(p)
        for name, link in LINKS.items():
            yield f"{path}: {name}", lambda f, p=path, k=link: (f.__delitem__(p), put_link(f, p, k))
        if isinstance(found, h5py.Group):
            yield f"{path}: dataset", lambda f, p=path: put(f, p, np.zeros(3))
            yield f"{path}: empty", lambda f, p=path: put(f, p, None)
        else:
            for name, value in kinds(found):
                yield f"{path}: {name}", lambda f, p=path, v=value: put(f, p, v)
        for attribute in found.attrs:
            for name, value in ATTRIBUTES.items():
                yield (
                    f"{path}: @{attribute} {name}",
                    lambda f, p=path, a=attribute, v=value: put_attribute(f[p], a, v),
                )


def put_link(file, path, link):
    file[path] = link(path)


def put_attribute(found, name, value):
    del found.attrs[name]
    if value is not None:
        found.attrs[name] = value


def read(folder):
    """All that is read of a session, checked as `prep` does."""
    reader, settings = NwbReader(folder), PrepSettings()
    refs = check_session(reader)
    part = survey_part(reader, refs, settings)
    join([part], reader.info, settings, "0" * 64)
    found = [reader.info, refs, part.trials, part.excluded]
    for ref in refs:
        raw = reader.read(ref)
        found += [raw.stimulus, raw.frame_times]
        for signals in (raw.responses, raw.perspectives, raw.modulations):
            for signal in signals:
                found += [signal.values, signal.times]
    return [*found, *(item for pair in reader.neurons().items() for item in pair)]


def same(one, other):
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(
            one, other, equal_nan=one.dtype.kind == "f"
        )
    return one == other


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    scan = Scan(tmp_path_factory.mktemp("odd") / NAME, external=False)
    return scan, scan.path.read_bytes(), read(scan.folder)


def check(good, names):
    """Do what `names` chooses to the file; how many of these were refused, and how many read."""
    scan, content, expected = good
    with h5py.File(scan.path) as file:
        listed = [case for case in cases(file) if names(case[0])]
    wrong, refused, read_again = [], 0, 0
    for name, change in listed:
        with h5py.File(scan.path, "a") as file:
            change(file)
        message = found = None
        try:
            found = read(scan.folder)
        except DataError as error:
            message = str(error)
            refused += 1
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {error}")
        if message is not None and not re.match(
            rf"{re.escape(str(scan.path))}: [^\n]*[a-z_]+[^\n]*\Z", message
        ):
            wrong.append(f"{name}: {message}")
        if found is not None:
            read_again += 1
            equal = len(found) == len(expected) and all(map(same, found, expected))
            if not equal and not any(re.fullmatch(f"({one}).*", name) for one in MEANS_ELSE):
                wrong.append(f"{name}: read as something else")
        scan.path.write_bytes(content)
    assert not wrong, "\n".join(wrong)
    return refused, read_again


def one_in(count):
    return lambda name: sum(name.encode()) % count == 0


def test_some_of_it(good):
    refused, read_again = check(good, one_in(40))
    assert refused > 5
    assert read_again > 5


@pytest.mark.slow
def test_more_of_it(good):
    check(good, one_in(5))


@pytest.mark.exhaustive
def test_all_of_it(good):
    check(good, one_in(1))
