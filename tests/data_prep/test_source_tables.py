"""Text in tables stays text, and ids keep their digits."""

import numpy as np
import pytest
from signals_session import NAME, Session

from cluster.plan import read_recordings
from data_prep.job import prepare
from data_prep.readers import npy
from data_prep.readers.tables import read_columns
from data_prep.sizing import read_table
from fmcortex.data.dataset import open_dataset
from fmcortex.errors import ConfigError, DataError
from fmcortex.plain_numbers import number, whole

BIG = 864691135400000001  # an id of a cell in MICrONS
COLUMNS = {
    "names with an underscore": (["2_3", "4", "5_6"], "U", ["2_3", "4", "5_6"]),
    "sessions of MICrONS": (["4_7", "5_6", "9_4"], "U", ["4_7", "5_6", "9_4"]),
    "names that begin with 0": (["007", "012", "100"], "U", ["007", "012", "100"]),
    "digits of another script": (["١", "٢", "٣"], "U", ["١", "٢", "٣"]),
    "infinities": (["inf", "1", "2"], "U", ["inf", "1", "2"]),
    "dates": (["2026-11-28", "2026-11-29", ""], "U", ["2026-11-28", "2026-11-29", ""]),
    "integers": (["1", "-2", "+3"], "i", [1, -2, 3]),
    "ids": ([str(BIG), "2", "3"], "i", [BIG, 2, 3]),
    "ids, one of them empty": ([str(BIG), "", "3"], "U", [str(BIG), "", "3"]),
    "ids among fractions": ([str(BIG), "1.5", "3"], "U", [str(BIG), "1.5", "3"]),
    "ids of 64 bits": (["18446744073709551615", "2", "3"], "u", [2**64 - 1, 2, 3]),
    "ids of more": (["18446744073709551616", "2", "3"], "U", ["18446744073709551616", "2", "3"]),
    "small integers, one of them empty": (["1", "", "3"], "f", [1, np.nan, 3]),
    "floats": (["0.5", "1e-3", "-.25"], "f", [0.5, 1e-3, -0.25]),
    "missing floats": (["nan", "NaN", "2."], "f", [np.nan, np.nan, 2]),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_columns(tmp_path, case):
    entries, kind, expected = COLUMNS[case]
    (tmp_path / "t.csv").write_text("a\n" + "".join(f'"{entry}"\n' for entry in entries))
    found = read_columns(tmp_path / "t.csv")["a"]
    assert found.dtype.kind == kind
    np.testing.assert_array_equal(found, np.array(expected))


def test_names_are_text_whatever_they_look_like(tmp_path):
    (tmp_path / "t.csv").write_text("layer,x\n4,1\n5,2\n")
    table = read_columns(tmp_path / "t.csv", ("layer",))
    assert table["layer"].tolist() == ["4", "5"]
    assert table["x"].tolist() == [1, 2]
    np.savez(tmp_path / "t.npz", layer=np.array([4, 5]), x=np.array([1, 2]))
    table = read_columns(tmp_path / "t.npz", ("layer",))
    assert table["layer"].tolist() == ["4", "5"]


def test_a_prepared_dataset_has_names_and_ids_as_they_were(tmp_path):
    session = Session(tmp_path / "source" / NAME)
    session.table["layer"] = np.array(["4", "4", "5", "5", "6", "6"])
    session.table["session"] = np.array(["4_7"] * 3 + ["5_6"] * 3)
    session.table["root_id"] = np.array([str(BIG), "", "1", "2", "3", "4"])
    session.table["unit_id"] = np.arange(6) + BIG
    session.write()
    prepare(str(tmp_path / "source"), str(tmp_path / "to"))
    table = open_dataset(str(tmp_path / "to")).session(NAME).neurons()
    assert table["layer"].tolist() == ["4", "4", "5", "5", "6", "6"]
    assert table["session"].tolist() == ["4_7"] * 3 + ["5_6"] * 3
    assert table["root_id"].tolist() == [str(BIG), "", "1", "2", "3", "4"]
    assert table["unit_id"].tolist() == [BIG + n for n in range(6)]


@pytest.mark.parametrize(
    ("entry", "message"),
    [("", r"unit id '' of neuron 2 is no"), ("2_3", r"unit id '2_3' of neuron 2 is no integer")],
)
def test_unit_ids_that_are_none(tmp_path, entry, message):
    session = Session(tmp_path / "source" / NAME)
    session.table["unit_id"] = np.array([str(BIG), str(BIG + 1), entry, "4", "5", "6"])
    session.write()
    with pytest.raises(DataError, match=message):
        prepare(str(tmp_path / "source"), str(tmp_path / "to"))


def test_starts_of_trials_that_only_look_like_numbers(tmp_path):
    session = Session(tmp_path / "source" / NAME)
    session.rows[2][4] = "1_05.0"
    session.write()
    with pytest.raises(DataError, match=r"trial t2: start is '1_05\.0', not a time in seconds"):
        prepare(str(tmp_path / "source"), str(tmp_path / "to"))


def test_names_of_sessions_in_tables_of_plans(tmp_path):
    path = tmp_path / "sessions.csv"
    path.write_text("session,neurons,minutes,scan_hz\n4_7,10,1.5,6\n007,11,2,6\n20240115,12,2,6\n")
    names = ["4_7", "007", "20240115"]
    assert [session.name for session in read_table(str(path))] == names
    assert list(read_recordings(str(path)).neurons) == names
    path.write_text("session,neurons,minutes,scan_hz\n4_7,1_0,1.5,6\n")
    with pytest.raises(DataError, match="column neurons is not all numbers"):
        read_table(str(path))
    with pytest.raises(ConfigError, match="column neurons: expected a whole number above 0"):
        read_recordings(str(path))


def test_bytes_are_text(tmp_path):
    np.save(tmp_path / "tiers.npy", np.array([b"train", b"oracle"]))
    assert npy.load(tmp_path / "tiers.npy").tolist() == ["train", "oracle"]


def test_plain_numbers():
    assert [whole(text) for text in ("12", "-0", "1.0", "1_0", " 1", "")] == [12, 0] + [None] * 4
    found = [number(text) for text in ("1.5", "1e999", "nan", "0x1", "1.", ".")]
    assert found == [1.5, None, None, None, 1.0, None]
