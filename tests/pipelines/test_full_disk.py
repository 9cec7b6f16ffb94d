"""A disk that is really full: a small tmpfs in a mount namespace of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not sys.platform.startswith("linux")
        or os.geteuid() != 0
        or shutil.which("unshare") is None,
        reason="mounting needs Linux, root and unshare",
    ),
]

TRAIN = """
mount -t tmpfs -o size=700k none disk
"$PYTHON" -m binseg train --data synthetic:num=24,size=48 --model unet-small --size 32 --epochs 2 \\
  --set 'model.options={width: 8}' --device cpu --out disk/run && exit 3
test $? = 1 || exit 4
test -z "$(find disk -name '*.ckpt' -o -name '*.safetensors' -o -name '.tmp-*')" || exit 5
mount -o remount,size=50m disk
"$PYTHON" -m binseg train --out disk/run --resume || exit 6
test -f disk/run/bundle/SHA256SUMS || exit 7
"""
PREDICT = """
mount -t tmpfs -o size=60k none disk
"$PYTHON" -m binseg predict "$MODEL" "$IMAGES" --out disk/masks --probability && exit 3
test $? = 1 || exit 4
test -z "$(find disk -name '.tmp-*')" || exit 5
for mask in disk/masks/*.png; do "$PYTHON" -c 'import sys; from PIL import Image
Image.open(sys.argv[1]).load()' "$mask" || exit 6; done
mount -o remount,size=50m disk
"$PYTHON" -m binseg predict "$MODEL" "$IMAGES" --out disk/masks --probability --resume || exit 7
test $(ls disk/masks/*.png | wc -l) = $(ls "$IMAGES" | wc -l) || exit 8
"""


def on_a_small_disk(script: str, folder: Path, **names: Path) -> str:
    """Run a script in `folder`, where `disk` is empty; give what it said on stderr."""
    (folder / "disk").mkdir()
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script],
        cwd=folder,
        env={**os.environ, "PYTHON": sys.executable, **{k: str(v) for k, v in names.items()}},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    return done.stderr


def test_training_on_a_full_disk_says_so_and_goes_on_later(tmp_path: Path) -> None:
    """It trains on, fails at its end in one line, leaves no half file, and resumes with room."""
    said = on_a_small_disk(TRAIN, tmp_path)
    line = "can't write disk/run/best.safetensors: No space left on device; free some space"
    assert f"binseg: {line}" in said
    assert "training goes on, and there is no checkpoint yet" in said
    assert "Traceback" not in said


def test_predicting_onto_a_full_disk_keeps_whole_masks(
    trained: Path, discs: Path, tmp_path: Path
) -> None:
    """One line, only whole images, and `--resume` writes the others."""
    said = on_a_small_disk(PREDICT, tmp_path, MODEL=trained, IMAGES=discs / "images")
    assert "No space left on device; free some space or choose another folder" in said
    assert "Traceback" not in said
