"""Which images are for training and which for testing, by their sorted keys alone."""

from pipeline.common.errors import UserError
from pipeline.data.source.photographs import Record

AUTO = "auto"
FROM_PAPER = 20_000
"""`auto` is the paper's split from so many images on."""
PAPER_TEST_IMAGES = 2_599
PARTITIONS = ("train", "validation", "test")


def usual_split(images: int) -> str:
    """What `auto` stands for with so many images: the paper's split, or a tenth for testing where they are few."""
    return "paper" if images >= FROM_PAPER else "0.1"


def split_records(records: list[Record], split: str) -> dict[str, list[Record]]:
    """Split name -> records, in order.

    Args:
        records: sorted by key.
        split: `paper`, `official`, or the fraction that is test, as "0.1"; not `auto`.

    Raises:
        UserError: an unknown split, or one that these images do not allow.
    """
    if len(records) < 2:
        raise UserError(f"split: {len(records)} image here; at least 2 are needed, one of them for testing")
    if split == "official":
        return _official(records)
    if split == "paper":
        test = PAPER_TEST_IMAGES
        if len(records) < 2 * test:
            raise UserError(
                f"split: paper keeps {test:,} images for testing, of {len(records):,} here; "
                "give --split auto (data.split=auto), or a fraction, as 0.1"
            )
    else:
        test = _fraction(split, len(records))
    return {"train": records[:-test], "test": records[-test:]}


def _fraction(split: str, images: int) -> int:
    try:
        fraction = float(split)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction < 1:
        raise UserError(f"split: {split!r}; auto, paper, official, or a fraction between 0 and 1 wanted")
    test = max(1, round(fraction * images))
    if test >= images:
        raise UserError(f"split: {split} of {images} images leaves none for training; set a smaller fraction")
    return test


def _official(records: list[Record]) -> dict[str, list[Record]]:
    unlisted = [record.name for record in records if record.partition is None]
    if len(unlisted) == len(records):
        raise UserError("split: official needs list_eval_partition.txt or .csv beside the images; or give --split auto")
    if unlisted:
        raise UserError(f"split: official, but the partition file lacks {len(unlisted)} images, {unlisted[0]} first")
    splits = {name: [each for each in records if each.partition == n] for n, name in enumerate(PARTITIONS)}
    for name in ("train", "test"):
        if not splits[name]:
            raise UserError(f"split: official, but the partition file puts no image into {name}; give --split auto")
    return {name: records for name, records in splits.items() if records}
