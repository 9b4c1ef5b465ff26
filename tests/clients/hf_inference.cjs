"use strict";
// Hugging Face's JavaScript package.

const assert = require("node:assert");
const { InferenceClient } = require("@huggingface/inference");
const sharp = require("sharp");

const client = new InferenceClient();
const url = process.argv[2];
const size = async (blob) => {
  const { width, height } = await sharp(Buffer.from(await blob.arrayBuffer())).metadata();
  return [width, height];
};

(async () => {
  for (const endpointUrl of [`${url}/models/builtin`, url]) {
    const blob = await client.textToImage({
      endpointUrl, inputs: "a red apple",
      parameters: { width: 64, height: 72, num_inference_steps: 2, negative_prompt: "blurry", seed: 7 },
    }, { outputType: "blob" });
    assert.deepStrictEqual(await size(blob), [64, 72]);
    assert.ok(blob.type.startsWith("image/"), blob.type);
  }
  const picture = await sharp({ create: { width: 64, height: 64, channels: 3, background: "#c86432" } }).png().toBuffer();
  const inputs = new Blob([picture], { type: "image/png" });
  assert.deepStrictEqual(await size(await client.imageToImage({ endpointUrl: url, inputs })), [64, 64]);
  const changed = await client.imageToImage({
    endpointUrl: url, inputs,
    parameters: { prompt: "greener", num_inference_steps: 4, strength: 0.5, target_size: { width: 72, height: 64 } },
  });
  assert.deepStrictEqual(await size(changed), [72, 64]);
  await assert.rejects(
    client.textToImage({ endpointUrl: url, inputs: "a", parameters: { num_inference_steps: 500 } }),
    /num_inference_steps must be an integer from 1 to 150, not 500/,
  );
})();
