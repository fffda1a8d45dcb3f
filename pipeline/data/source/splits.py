"""Which images are for training and which for testing, by their sorted keys alone."""

from pipeline.common.errors import UserError
from pipeline.data.source.photographs import Record

PAPER_TEST_IMAGES = 2_599
PARTITIONS = ("train", "validation", "test")


def split_records(records: list[Record], split: str) -> dict[str, list[Record]]:
    """Split name -> records, in order.

    Args:
        records: sorted by key.
        split: `paper`, `official`, or the fraction that is test, as "0.1".

    Raises:
        UserError: an unknown split, or one that these images do not allow.
    """
    if split == "official":
        return _official(records)
    if split == "paper":
        test = PAPER_TEST_IMAGES
        if len(records) < 2 * test:
            raise UserError(
                f"split: paper keeps {test:,} images for testing, of {len(records):,} here; "
                "set a fraction, as --split 0.1"
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
        raise UserError(f"split: {split!r}; paper, official, or a fraction between 0 and 1 wanted")
    test = max(1, round(fraction * images))
    if test >= images:
        raise UserError(f"split: {split} of {images} images leaves none for training; set a smaller fraction")
    return test


def _official(records: list[Record]) -> dict[str, list[Record]]:
    unlisted = [record.name for record in records if record.partition is None]
    if len(unlisted) == len(records):
        raise UserError("split: official needs list_eval_partition.txt or .csv beside the images; or set a fraction")
    if unlisted:
        raise UserError(f"split: official, but the partition file lacks {len(unlisted)} images, {unlisted[0]} first")
    splits = {name: [each for each in records if each.partition == n] for n, name in enumerate(PARTITIONS)}
    for name in ("train", "test"):
        if not splits[name]:
            raise UserError(f"split: official, but the partition file puts no image into {name}; set a fraction")
    return {name: records for name, records in splits.items() if records}
