#!/usr/bin/env bash
# pynwb: the rows of a table have the numbers of an enumerated column, the column has its text.
#
# Good guesses are that table[0] and table.to_dataframe() agree, and that both show what the column
# shows. Of an EnumData column, written or read back, to_dataframe(), column[...] and
# table[row, "name"] give the text; table[row] and table[first:last] give data frames of numbers, in
# which a comparison with the text selects nothing.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  pynwb==4.2.0 hdmf==6.2.0 h5py==3.16.0
"$work/venv/bin/python" -W ignore - "$work/example.nwb" <<'PYTHON'
import datetime
import sys

import hdmf
import pynwb

print("pynwb", pynwb.__version__, "hdmf", hdmf.__version__)
start = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
nwb = pynwb.NWBFile("example", "id", start)
trials = pynwb.epoch.TimeIntervals(name="clips", description="clips")
for number in range(3):
    trials.add_interval(start_time=number * 2.0, stop_time=number * 2.0 + 1)
trials.add_column("tier", "of the clip", data=[0, 1, 0], enum=["train", "test"])
nwb.add_time_intervals(trials)


def shown(table):
    return {
        "column[:]": list(table["tier"][:]),
        "to_dataframe()": table.to_dataframe()["tier"].tolist(),
        "table[0, 'tier']": table[0, "tier"],
        "table[0]": table[0]["tier"].tolist(),
        "table[0:3]": table[0:3]["tier"].tolist(),
        "rows of table[0:3] that are train": int((table[0:3]["tier"] == "train").sum()),
    }


found = {"in memory": shown(trials)}
with pynwb.NWBHDF5IO(sys.argv[1], "w") as io:
    io.write(nwb)
with pynwb.NWBHDF5IO(sys.argv[1], "r") as io:
    found["read back"] = shown(io.read().intervals["clips"])
for where, ways in found.items():
    for way, got in ways.items():
        print(f"{where}: {way}: {got}")
text = ["train", "test", "train"]
expected = dict(zip(found["in memory"], (text, text, "train", [0], [0, 1, 0], 0)))
if any(ways != expected for ways in found.values()):
    sys.exit(f"changed: not {expected}")
print("As found: rows have the numbers, the column and the whole data frame have the text.")
PYTHON
