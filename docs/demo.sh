#!/usr/bin/env bash
# The main job on synthetic patients: what `make demo` runs once everything is installed.
# DEMO is the folder to work in (made anew), DEMO_SECONDS the time for training.
set -euo pipefail
demo="${DEMO:-demo}"
seconds="${DEMO_SECONDS:-120}"
say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

if [ -e "$demo" ] && [ ! -f "$demo/.livprep-demo" ]; then
  echo "demo: $demo exists and was not made by make demo; choose another folder with DEMO=..." >&2
  exit 2
fi
rm -rf "$demo"
mkdir -p "$demo"
touch "$demo/.livprep-demo"
cd "$demo"
unset LIVPREP_STORE  # the demo uses ./liver.zarr in its own folder, never yours

say "12 synthetic patients, two of them in both data sets: 7 as 3DIRCADb (DICOM, zipped and loose), 7 as LiTS (NIfTI)"
livprep phantom data --dataset both --cases 7 --size 96 --seed 1

say "Ingest both data sets into one Zarr store"
livprep ingest data/ircadb data/lits

say "Add a windowed channel (WL 40, WW 220: -70 to 150 HU)"
livprep window --wl 40 --ww 220
livprep info

say "Divide by patient: 8 to train, 2 to validate, 2 to test"
livprep split --val 0.2 --test 0.17 --seed 0

say "Train the liver stage for $seconds seconds"
livtrain fit --stage liver --time "${seconds}s"

say "Predict the test patients, who were never seen"
livtrain predict --cases test --liver runs/liver -o predictions

say "Score as the LiTS challenge does"
livtrain evaluate -p predictions
echo
echo "Pictures: $PWD/runs/liver/loss.png, dice.png and previews/"
