"""OpenAI's Python package."""

import base64
import io
import urllib.request

import openai
from PIL import Image

from common import URL, picture, png, refused

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
FEW = {"steps": 2}


def decoded(item):
    return Image.open(io.BytesIO(base64.b64decode(item.b64_json)))


models = client.models.list().data
assert [model.id for model in models] == ["builtin"], models
assert client.models.retrieve("builtin").object == "model"

reply = client.images.generate(
    model="builtin", prompt="a red apple", n=2, size="64x64", quality="low", output_format="webp", user="tests",
    extra_body={"steps": 2, "seed": 7},
)
assert reply.size == "64x64" and reply.output_format == "webp" and reply.quality == "low", reply
assert [decoded(item).format for item in reply.data] == ["WEBP", "WEBP"]
again = client.images.generate(
    prompt="a red apple", n=2, size="64x64", quality="low", output_format="webp", extra_body={"steps": 2, "seed": 7}
)
assert [item.b64_json for item in again.data] == [item.b64_json for item in reply.data], "the same seed"

reply = client.images.generate(
    prompt="a red apple", size="64x64", response_format="url", output_format="jpeg", output_compression=50,
    extra_body=FEW,
)
with urllib.request.urlopen(reply.data[0].url) as response:
    assert response.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(response.read())).size == (64, 64)

events = list(client.images.generate(
    prompt="a red apple", size="64x64", stream=True, partial_images=2, extra_body={"steps": 8},
))
kinds = [event.type for event in events]
assert kinds[-1] == "image_generation.completed", kinds
assert all(kind == "image_generation.partial_image" for kind in kinds[:-1]), kinds
assert [event.partial_image_index for event in events[:-1]] == list(range(len(events) - 1))
assert decoded(events[-1]).size == (64, 64)

mask = picture(colour=(0, 0, 0, 255), mode="RGBA")
mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
image = ("image.png", png(picture()), "image/png")
reply = client.images.edit(
    image=image, mask=("mask.png", png(mask), "image/png"), prompt="a hat", n=2, extra_body=FEW,
)
assert [decoded(item).size for item in reply.data] == [(64, 64)] * 2
reply = client.images.edit(image=[image, image], prompt="a hat", size="72x64", extra_body=FEW)
assert [decoded(item).size for item in reply.data] == [(72, 64)] * 2
events = list(client.images.edit(image=image, prompt="a hat", stream=True, extra_body=FEW))
assert events[-1].type == "image_edit.completed"
reply = client.images.create_variation(image=image, n=1, size="64x64")
assert len(reply.data) == 1

error = refused(openai.BadRequestError, lambda: client.images.generate(prompt="a", n=11))
assert error.param == "n" and "1 to 10" in error.message, error
assert error.response.headers["x-should-retry"] == "false"
error = refused(openai.NotFoundError, lambda: client.images.generate(prompt="a", model="dall-e-3"))
assert error.code == "model_not_found" and "builtin" in error.message, error
