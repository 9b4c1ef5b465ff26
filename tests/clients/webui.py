"""webuiapi, a Python client of the Stable Diffusion web UI."""

import contextlib
import io
import threading
from urllib.parse import urlsplit

import webuiapi

from common import URL, picture, refused

address = urlsplit(URL)
api = webuiapi.WebUIApi(host=address.hostname, port=address.port, steps=2)

assert api.util_get_model_names() == ["builtin"]
assert api.util_get_current_model() == "builtin"
assert {"Euler a", "DPM++ 2M"} <= set(api.util_get_sampler_names())
assert {"karras", "automatic"} <= set(api.util_get_scheduler_names())
assert api.get_options()["sd_model_checkpoint"] == "builtin"
with contextlib.redirect_stdout(io.StringIO()):
    api.util_set_model("builtin")
assert api.get_scripts() == {"txt2img": [], "img2img": []}
assert {"ram", "cuda"} <= set(api.get_memory())
for listing in [api.get_upscalers, api.get_latent_upscale_modes, api.get_cmd_flags]:
    assert listing()
assert [lora["name"] for lora in api.get_loras()] == ["duotone"]
for listing in [api.get_sd_vae, api.get_hypernetworks, api.get_face_restorers, api.get_prompt_styles]:
    assert listing() == []
api.util_wait_for_ready(check_interval=0.1)

result = api.txt2img(
    prompt="a red apple", negative_prompt="blurry", seed=7, width=64, height=64, cfg_scale=2.5, batch_size=2,
    sampler_name="DPM++ 2M", scheduler="Karras",
)
assert [image.size for image in result.images] == [(64, 64)] * 2
assert result.info["all_seeds"] == [7, 8] and result.info["sampler_name"] == "DPM++ 2M", result.info
assert result.parameters["prompt"] == "a red apple"
text = result.images[0].text["parameters"]
assert text == result.info["infotexts"][0] and "Schedule type: Karras" in text, text
assert api.png_info(result.image).info == text
assert api.png_info(picture()).info == ""

hires = api.txt2img(
    prompt="a red apple", seed=7, width=64, height=64, enable_hr=True, hr_scale=1.5, denoising_strength=0.5,
    subseed=3, subseed_strength=0.2,
)
assert hires.image.size == (96, 96), hires.image.size
assert "Hires upscaler: Latent" in hires.info["infotexts"][0]

mask = picture(colour=0, mode="L")
mask.paste(255, (16, 16, 48, 48))
for full in [True, False]:
    result = api.img2img(
        images=[picture()], mask_image=mask, prompt="a hat", seed=7, width=64, height=64, mask_blur=0,
        inpaint_full_res=full, inpaint_full_res_padding=8, inpainting_fill=1, denoising_strength=0.8, steps=4,
    )
    assert result.image.getpixel((2, 2)) == (200, 100, 50), "what is not masked stays"
assert api.img2img(images=[picture()], prompt="a hat", width=72, height=64).image.size == (72, 64)

error = refused(RuntimeError, lambda: api.txt2img(prompt="a", sampler_name="none"))
assert error.args[0] == 404 and "Sampler not found" in error.args[1], error

# Somebody else's thread asks how far it is, and ends it.
results = []
body = {"prompt": "a", "width": 256, "height": 256, "steps": 150}
job = threading.Thread(target=lambda: results.append(api.txt2img(**body)))
job.start()
while api.get_progress()["state"]["sampling_step"] < 1:
    pass
assert api.get_progress()["state"]["job_count"] == 1
api.interrupt()
job.join(timeout=60)
assert results and not job.is_alive()
api.util_wait_for_ready(check_interval=0.1)
