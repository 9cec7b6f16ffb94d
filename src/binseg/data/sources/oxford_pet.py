"""Oxford-IIIT Pet in its official layout: read from a folder, or downloaded when asked for."""

import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from binseg.data.dataset import name_some
from binseg.data.sources.layouts import wrapped
from binseg.data.sources.listing import Findings, list_folder, read_lines
from binseg.downloads import download
from binseg.errors import DataError, OutputError
from binseg.progress import SILENT, Progress
from binseg.storage import locked
from binseg.types import Record, Split

OXFORD_URL = "https://thor.robots.ox.ac.uk/datasets/pets"
MD5_OF: Mapping[str, str] = {
    "images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c",
    "annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f",
}
_SPECIES = {"1": "cat", "2": "dog"}


def find_oxford_pet(root: Path) -> Path | None:
    """Find the dataset's layout, whole or with one list only; folders may wrap it."""
    for folder in wrapped(root) if root.is_dir() else []:
        if (folder / "annotations" / "trimaps").is_dir() and (folder / "images").is_dir():
            return folder
    return None


def read_oxford_pet(home: Path, *_: object) -> Findings:
    """Read the official lists; every tenth image of `trainval.txt`, from the first, validates."""
    records: list[Record] = []
    lists: list[str] = []
    for name in ("trainval.txt", "test.txt"):
        path = home / "annotations" / name
        if path.is_file():
            lists.append(name)
            lines = [line for line in read_lines(path) if not line.startswith("#")]
            for index, line in enumerate(lines):
                trains: Split = "train" if index % 10 else "val"
                split = trains if name == "trainval.txt" else "test"
                records.append(_record(home, line.split(), split))
    if not lists:
        told = "annotations/ has neither trainval.txt nor test.txt"
        raise DataError(f"{home}: {told}; at least one of the official lists is needed")
    # Two listings instead of a look at each of 14,780 files.
    there = {*list_folder(home / "images").images}
    there |= {*list_folder(home / "annotations" / "trimaps").images}
    wanted = [one.image_path for one in records] + [p for one in records for p in one.mask_paths]
    if missing := [path.relative_to(home).as_posix() for path in wanted if path not in there]:
        told = f"{len(missing)} files that the lists name are missing"
        raise DataError(f"{home}: {told} ({name_some(missing)})")
    notes = [f"Oxford-IIIT Pet: {' and '.join(lists)}, {len(records)} images"]
    if len(lists) == 1:
        only = "train and val" if lists == ["trainval.txt"] else "test"
        notes.append(f"only {lists[0]} is there: the splits are {only}")
    return Findings(records=tuple(records), notes=tuple(notes), is_trimap=True)


def download_oxford_pet(
    root: Path,
    *,
    progress: Progress = SILENT,
    base_url: str = OXFORD_URL,
    md5_of: Mapping[str, str] = MD5_OF,
) -> None:
    """Fetch and unpack the official archives into `root`; what was fetched is resumed."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{root}: the folder can't be made: {error.strerror}") from None
    with locked(root / ".download", tidy=True):
        for name, md5 in md5_of.items():
            folder = root / name.removesuffix(".tar.gz")
            if folder.is_dir():
                continue
            progress.say(f"fetching {base_url}/{name} into {root}")
            archive = download(f"{base_url}/{name}", root / name, md5=md5, progress=progress)
            _unpack(archive, folder)
            archive.unlink()


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack beside the goal and rename, so that a folder that is there is whole."""

    def only_data(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        # The official archive carries a Mac's ._NAME files beside the trimaps.
        is_data = not Path(member.name).name.startswith("._")
        return tarfile.data_filter(member, path) if is_data else None

    try:
        with (
            tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpack-") as temporary,
            tarfile.open(archive) as tar,
        ):
            tar.extractall(temporary, filter=only_data)
            unpacked = Path(temporary) / folder.name
            if not unpacked.is_dir():
                raise DataError(f"{archive}: the archive holds no folder {folder.name}/")
            unpacked.rename(folder)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{archive}: the archive can't be unpacked: {error}") from None
    except OSError as error:
        raise OutputError(f"{folder}: can't be written: {error.strerror or error}") from None


def _record(root: Path, words: Sequence[str], split: Split) -> Record:
    """Read `NAME CLASS SPECIES BREED`; where only the name is given, cats bear a capital."""
    name = words[0]
    breed = name.rpartition("_")[0] or name
    species = _SPECIES.get(words[2]) if len(words) > 2 else None
    columns = {"breed": breed, "species": species or ("cat" if name[0].isupper() else "dog")}
    image = root / "images" / f"{name}.jpg"
    mask = root / "annotations" / "trimaps" / f"{name}.png"
    return Record(id=name, image_path=image, mask_path=mask, split=split, columns=columns)
