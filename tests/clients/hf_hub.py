"""Hugging Face's Python package."""

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from common import URL, picture, png, refused

for address in [URL, f"{URL}/models/builtin", f"{URL}/models/somebody/builtin"]:
    client = InferenceClient(model=address)
    image = client.text_to_image(
        "a red apple", negative_prompt="blurry", width=64, height=72, num_inference_steps=2, guidance_scale=2.5,
        scheduler="Euler a", seed=7,
    )
    assert image.size == (64, 72), image.size
    again = client.text_to_image(
        "a red apple", negative_prompt="blurry", width=64, height=72, num_inference_steps=2, guidance_scale=2.5,
        scheduler="Euler a", seed=7,
    )
    assert image.tobytes() == again.tobytes(), "the same seed"

client = InferenceClient(model=URL)
alone = client.image_to_image(png(picture((64, 72))))
assert alone.size == (64, 72), alone.size
changed = client.image_to_image(
    png(picture()), prompt="greener", negative_prompt="red", num_inference_steps=4, guidance_scale=2,
    target_size={"width": 72, "height": 64}, strength=0.5,
)
assert changed.size == (72, 64), changed.size

error = refused(HfHubHTTPError, lambda: client.text_to_image("a", num_inference_steps=500))
assert error.response.status_code == 400 and "1 to 150, not 500" in error.response.json()["error"]
error = refused(HfHubHTTPError, lambda: client.text_to_image("a", extra_body={"colour": "red"}))
assert error.response.json() == {"error": "Unknown parameter(s): colour"}
