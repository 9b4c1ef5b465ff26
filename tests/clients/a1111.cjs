"use strict";
// a1111-webui-api, a JavaScript client of the Stable Diffusion web UI.

const assert = require("node:assert");
const sharp = require("sharp");
const { StableDiffusionApi } = require("a1111-webui-api");

const api = new StableDiffusionApi({ baseUrl: process.argv[2], defaultStepCount: 2 });
const size = async (image) => {
  const { width, height } = await image.metadata();
  return [width, height];
};

(async () => {
  assert.strictEqual(await api.getCurrentModel(), "builtin");
  await api.setModel("builtin");
  assert.ok((await api.getSamplers()).some((sampler) => sampler.name === "Euler a"));
  assert.ok((await api.getUpscalers()).length > 0);
  await api.refreshCheckpoints();

  const result = await api.txt2img({ prompt: "a red apple", width: 64, height: 72, seed: 7, batch_size: 2 });
  assert.strictEqual(result.images.length, 2);
  assert.deepStrictEqual(await size(result.image), [64, 72]);
  assert.deepStrictEqual(JSON.parse(result.info).all_seeds, [7, 8]);

  const larger = await api.txt2img({ prompt: "a red apple", width: 64, height: 64, enable_hr: true, hr_scale: 1.5 });
  assert.deepStrictEqual(await size(larger.image), [96, 96]);

  const picture = sharp({ create: { width: 64, height: 64, channels: 3, background: "#c86432" } }).png();
  const mask = sharp({ create: { width: 64, height: 64, channels: 3, background: "#ffffff" } }).png();
  const changed = await api.img2img({
    init_images: [picture], mask_image: mask, prompt: "a hat", width: 64, height: 64, inpaint_full_res: false,
  });
  assert.deepStrictEqual(await size(changed.image), [64, 64]);

  const info = await api.pngInfo(picture);
  assert.deepStrictEqual(info.parameters, {});
  const progress = await api.getProgress(true);
  assert.deepStrictEqual([progress.progress, progress.state.job_count], [0, 0]);
  await assert.rejects(api.txt2img({ prompt: "a", sampler_name: "none" }), (error) => {
    assert.deepStrictEqual([error.response.status, error.response.data.detail], [404, "Sampler not found"]);
    return true;
  });
})();
