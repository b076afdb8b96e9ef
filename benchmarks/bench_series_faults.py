"""Ten common faults of DICOM series, and which readers notice: livprep, SimpleITK, dicom2nifti, dcm2niix.

    python -m benchmarks.bench_series_faults [--peers PYTHON] [--markdown FILE]

`--peers` names a Python that has the others installed (SimpleITK, dicom2nifti, dcm2niix); they are no dependencies
of livprep and may not share its versions. A reader *catches* a fault when it refuses the series, or says a warning,
or gives several volumes; *silent* means one volume and not a word.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / name) for name in ("", "faults")]

from corpus_dicom import TEN, every  # noqa: E402

from livprep.inspection import inspect_sources  # noqa: E402

PEERS = {
    "SimpleITK": """
import sys, SimpleITK as sitk
reader = sitk.ImageSeriesReader()
names = [n for i in reader.GetGDCMSeriesIDs(sys.argv[1]) for n in reader.GetGDCMSeriesFileNames(sys.argv[1], i)]
reader.SetFileNames(names)
sitk.WriteImage(reader.Execute(), sys.argv[2] + '/volume.nii')
""",
    "dicom2nifti": """
import sys, dicom2nifti
dicom2nifti.convert_directory(sys.argv[1], sys.argv[2], compression=False, reorient=False)
""",
    "dcm2niix": """
import subprocess, sys, dcm2niix
done = subprocess.run([dcm2niix.bin, '-b', 'n', '-f', 'volume_%s', '-o', sys.argv[2], sys.argv[1]],
                      capture_output=True, text=True)
print(done.stdout, done.stderr, sep='\\n', file=sys.stderr)
sys.exit(done.returncode)
""",
}
ALARMS = ("warning", "error", "skip", "exception", "not consistent", "missing", "unable", "duplicate")
_VERSIONS = (
    "import json; from importlib.metadata import version; "
    "print(json.dumps({n: version(n) for n in ('SimpleITK', 'dicom2nifti', 'dcm2niix')}))"
)


def ours(folder: Path) -> str:
    """What `livprep inspect` says: the code, or the warnings."""
    (record,) = inspect_sources([folder])
    return str(record["code"]) or ", ".join(record["warnings"]) or "silent"


def theirs(python: str, program: str, folder: Path, quiet: set[str]) -> str:
    """What another reader does; `quiet` holds the lines that it says of a whole series too."""
    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run(
            [python, "-c", program, str(folder), out], capture_output=True, text=True, timeout=120, check=False
        )
        said = {line for line in lines(done.stderr) if line not in quiet}
        volumes = len(list(Path(out).glob("*.nii")))
    if done.returncode or not volumes:
        return "refused"
    alarmed = any(word in line.lower() for line in said for word in ALARMS)
    return "several" if volumes > 1 else "warned" if alarmed else "silent"


def lines(text: str) -> set[str]:
    """Lines without the numbers that differ from run to run."""
    return {"".join(char for char in line if not char.isdigit()) for line in text.splitlines()}


def spoken(python: str, program: str, folder: Path) -> set[str]:
    """Lines that a reader says of a series without a fault."""
    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run([python, "-c", program, str(folder), out], capture_output=True, text=True, check=False)
        if done.returncode or not list(Path(out).glob("*.nii")):
            raise SystemExit(f"a whole series is refused, so nothing can be measured:\n{done.stderr}")
    return lines(done.stderr)


def table(peers: str | None) -> list[str]:
    """The measured table as Markdown rows."""
    readers = ["livprep", *(PEERS if peers else ())]
    caught = dict.fromkeys(readers, 0)
    rows = [f"| fault | {' | '.join(readers)} |", f"|---|{'---|' * len(readers)}"]
    with tempfile.TemporaryDirectory() as work:
        whole = Path(work) / "whole"
        every()(whole)
        quiet = {name: spoken(peers, program, whole / "scan") for name, program in PEERS.items()} if peers else {}
        for number, (name, (build, _)) in enumerate(TEN.items()):
            folder = Path(work) / str(number)
            build(folder)
            said = {"livprep": ours(folder)}
            for peer, program in PEERS.items() if peers else ():
                said[peer] = theirs(str(peers), program, folder / "scan", quiet[peer])
            rows.append(f"| {name} | {' | '.join(said.values())} |")
            for reader, word in said.items():
                caught[reader] += word != "silent"
    return [*rows, f"| **caught** | {' | '.join(f'**{n} of {len(TEN)}**' for n in caught.values())} |"]


def main() -> None:
    from benchmarks.machine import describe

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", metavar="PYTHON", help="a Python with the other readers installed")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table here too")
    options = parser.parse_args()
    rows = table(options.peers)
    about = describe("pydicom", "numpy")
    if options.peers:
        found = subprocess.run([options.peers, "-c", _VERSIONS], capture_output=True, text=True, check=True)
        about += ", " + ", ".join(f"{name} {number}" for name, number in json.loads(found.stdout).items())
    print("\n".join([*rows, "", about]))
    if options.markdown:
        options.markdown.write_text(
            "# Ten faults of DICOM series, and who notices\n\n"
            "`python -m benchmarks.bench_series_faults --peers PYTHON`; the series are those of "
            "`tests/faults/corpus_dicom.py`.\nrefused: an error, or no volume; several: more than one volume; warned: "
            "one volume and a warning;\nsilent: one volume and not a word. To notice is not to repair: dcm2niix's "
            "several volumes hold the faulty one too.\nThe last slice can be missed only because the header counts "
            "the slices (ImagesInAcquisition).\n\n" + "\n".join(rows) + f"\n\n{about}\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
