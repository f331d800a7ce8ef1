"""Pictures and captions: finding, checking and copying them."""

from .pictures import (
    EXTENSIONS,
    MAX_PIXELS,
    DatasetReport,
    Picture,
    PictureError,
    check_dataset,
    check_picture,
    copy_dataset,
    list_pictures,
    read_caption,
    write_caption,
)

__all__ = [
    "EXTENSIONS",
    "MAX_PIXELS",
    "DatasetReport",
    "Picture",
    "PictureError",
    "check_dataset",
    "check_picture",
    "copy_dataset",
    "list_pictures",
    "read_caption",
    "write_caption",
]
