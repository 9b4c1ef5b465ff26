"""What the clients' tests share: the server's address and small pictures."""

import io
import sys

from PIL import Image

URL = sys.argv[1]


def picture(size=(64, 64), colour=(200, 100, 50), mode="RGB"):
    return Image.new(mode, size, colour)


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def refused(kind, call):
    """The error of a call that must be refused."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"not refused: {kind}")
