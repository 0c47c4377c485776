#!/usr/bin/env bash
# HDF5: relative names of other files, by three rules.
#
# A good guess is that they are relative to the folder of the HDF5 file that has them. An external
# link and a virtual dataset look there first. If there is no such file, both look in the folder
# that the process runs in, and take what is called so there. A dataset with external raw storage
# looks in the folder of the process only: it cannot be read from elsewhere, and where that folder
# has a file of that name, its bytes are read, without a word.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check h5py==3.16.0 numpy==2.4.6
"$work/venv/bin/python" - "$work" <<'PYTHON'
import os
import sys

import h5py
import numpy as np

print("h5py", h5py.__version__, "with HDF5", h5py.version.hdf5_version)
here, elsewhere = f"{sys.argv[1]}/here", f"{sys.argv[1]}/elsewhere"
os.mkdir(here)
os.mkdir(elsewhere)
values = np.arange(1.0, 4.0)
os.chdir(here)
values.tofile("values.raw")
with h5py.File("other.h5", "w") as file:
    file["x"] = values
with h5py.File("main.h5", "w") as file:
    file["link"] = h5py.ExternalLink("other.h5", "/x")
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "x", (3,))
    file.create_virtual_dataset("virtual", layout)
    file.create_dataset("raw", (3,), "f8", external=[("values.raw", 0, 24)])


def read(name):
    with h5py.File(f"{here}/main.h5") as file:
        try:
            return file[name][:].tolist()
        except OSError as error:
            return str(error)


found = {"in its folder": {name: read(name) for name in ("link", "virtual", "raw")}}
os.chdir(elsewhere)
found["elsewhere"] = {name: read(name) for name in ("link", "virtual", "raw")}
(-values).tofile("values.raw")
with h5py.File("other.h5", "w") as file:
    file["x"] = -values
found["elsewhere, beside others of these names"] = {
    name: read(name) for name in ("link", "virtual", "raw")
}
os.remove(f"{here}/other.h5")
found["likewise, with other.h5 gone from its folder"] = {
    name: read(name) for name in ("link", "virtual")
}
for where, read_there in found.items():
    for name, got in read_there.items():
        print(f"{where}: {name}: {got}")
right, wrong = values.tolist(), (-values).tolist()
there = found["elsewhere"]
same = found["in its folder"] == {"link": right, "virtual": right, "raw": right}
same = same and there["link"] == there["virtual"] == right
same = same and "unable to open external raw data file" in there["raw"]
_, _, others, gone = found.values()
same = same and others == {"link": right, "virtual": right, "raw": wrong}
same = same and gone == {"link": wrong, "virtual": wrong}
if not same:
    sys.exit("changed")
print("As found: files of these names in the folder of the process are read for those beside it.")
PYTHON
